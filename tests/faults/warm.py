"""The nursery: a process that has imported everything, and forks a worker, or a client, whenever it is asked for one.

Importing takes longer than most faults, and more of the processor than most runs. It is told by a line of JSON what a
process shall be, and tells by a line of JSON that it was born, and how it died. A worker is what
`celery -A tests.faults.app worker …` is, a client what `one_client.py` is. When whoever asked is gone, so are they all.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn


def main() -> None:
    import celery.apps.worker
    import celery.bin.celery
    import celery.worker  # noqa: F401

    import pickaxe.app
    import pickaxe.broker._pool
    import pickaxe.store  # noqa: F401

    Nursery().run()


class Nursery:
    """Has a single thread, and opens no connection: so it can fork."""

    def __init__(self) -> None:
        self._living: set[int] = set()
        self._heard = b""
        self._wake_up, wake_up = os.pipe()
        os.set_blocking(wake_up, False)
        signal.set_wakeup_fd(wake_up)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def run(self) -> None:
        """Until nobody asks any more."""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._wake_up, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    said = os.read(key.fd, 1 << 16)
                    if key.fd == 0 and not said:
                        return self._end()
                    if key.fd == 0:
                        self._listen(said)
                self._bury()

    def _listen(self, said: bytes) -> None:
        *lines, self._heard = (self._heard + said).split(b"\n")
        for line in lines:
            told = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _become(told)
            self._living.add(pid)
            _tell(born=pid)

    def _bury(self) -> None:
        for pid in list(self._living):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._living.discard(pid)
                _tell(died=pid, code=os.waitstatus_to_exitcode(status))

    def _end(self) -> None:
        for pid in self._living:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _tell(**words: int) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


def _become(told: dict[str, Any]) -> NoReturn:
    """From here on this process is that worker or client, and the leader of a process group of its own."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.update(told["environment"])
    with Path(told["log"]).open("ab") as log, Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    from pickaxe import _failpoints

    _failpoints.arm(os.environ.get("PICKAXE_FAILPOINTS", ""))
    code: Any = 1
    try:
        code = _work(told["options"]) if told["program"] == "worker" else _be_client()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(bool(code)))


def _work(options: list[str]) -> Any:
    from celery.__main__ import main as celery_main

    from pickaxe.broker import use_coroutine_pool

    use_coroutine_pool()
    sys.argv = ["celery", "-A", "tests.faults.app", "worker", *options]
    return celery_main()


def _be_client() -> int:
    from tests.faults import one_client

    one_client.main()
    return 0


if __name__ == "__main__":
    main()
