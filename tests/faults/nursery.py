"""Worker processes, forked from one that has imported everything: see `warm.py`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Forked:
    """A process that the nursery has forked, as `subprocess.Popen` would show it. A leader of its process group."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = threading.Event()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def died(self, code: int) -> None:
        """The nursery says so."""
        self.returncode = code
        self._over.set()


class Nursery:
    """One process that forks the others. All methods may be called by any thread.

    `environment` are further variables, which its interpreter needs when it starts.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
        self._asking = threading.Lock()
        self._changed = threading.Condition()
        self._newborn: list[Forked] = []
        self._living: dict[int, Forked] = {}
        self._gone = False
        threading.Thread(target=self._listen, daemon=True).start()

    def fork(self, told: Mapping[str, Any], timeout: float = 60) -> Forked:
        """A new worker."""
        with self._asking:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(told).encode() + b"\n")
            self._process.stdin.flush()
            with self._changed:
                deadline = time.monotonic() + timeout
                while not self._newborn:
                    assert not self._gone, "the nursery has died"
                    assert self._changed.wait(deadline - time.monotonic()), "no worker was born"
                return self._newborn.pop()

    def close(self) -> None:
        """End it, and all that it has forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as said:
            for line in said:
                self._heard(**json.loads(line))
        with self._changed:
            self._gone = True
            self._changed.notify_all()

    def _heard(self, born: int = 0, died: int = 0, code: int = 0) -> None:
        with self._changed:
            if born:
                self._living[born] = Forked(born)
                self._newborn.append(self._living[born])
            if died:
                self._living.pop(died).died(code)
            self._changed.notify_all()
