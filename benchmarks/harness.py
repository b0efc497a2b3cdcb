"""The peer harness: found, copied beside our adapter into a scratch folder, and run one case at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.cases import FLOOR, OURS, Case

ADAPTER = Path(__file__).with_name("peer_pickaxe.py")
PORTS = 14
"""The driver uses so many in a row."""
TIMEOUT = 900.0
"""Seconds for one case; the driver's own waits are shorter."""


class Harness:
    """The harness in a scratch folder of its own, its PostgreSQL stopped and everything removed at the end.

    `venvs` is a folder with an environment for each peer, as the harness' README sets them up. The driver,
    Pickaxe, the floor and plain Celery run in this interpreter's own environment.
    """

    def __init__(self, source: Path, venvs: Path | None) -> None:
        self._venvs = venvs
        self._port = _free_ports()
        self._folder = Path(tempfile.mkdtemp(prefix="pickaxe-bench-"))
        for folder in (".", "adapters"):
            (self._folder / folder).mkdir(exist_ok=True)
            for path in (source / folder).glob("*.py"):
                shutil.copyfile(path, self._folder / folder / path.name)
        shutil.copyfile(ADAPTER, self._folder / "adapters" / ADAPTER.name)

    @staticmethod
    def found(source: Path) -> bool:
        """Whether this folder is the harness."""
        return (source / "driver.py").is_file() and (source / "adapters").is_dir()

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._run("servers.py", "stop", "--tmp", str(self._folder / "data"))
        shutil.rmtree(self._folder, ignore_errors=True)

    def python(self, peer: str) -> Path | None:
        """The interpreter that runs this peer, None if its environment is missing."""
        if peer == OURS or peer in FLOOR:
            return Path(sys.executable)
        found = self._venvs / peer / "bin" / "python" if self._venvs else None
        missing = found is None or not found.exists() or (peer == "restate" and self._restate_server() is None)
        return None if missing else found

    def run(self, case: Case) -> dict[str, Any]:
        """One case: the driver's line of figures, `ok` false and `error` said when there are none."""
        argv = ["--python", str(self.python(case.peer)), "--peer", case.peer, "--mode", case.mode, "--work", case.work]
        argv += [*case.options.split(), "--port", str(self._port), "--tmp", str(self._folder / "data")]
        for name, value in case.env.items():
            argv += ["--env", f"{name}={value}"]
        try:
            done = self._run("driver.py", *argv)
            figures = _last_line(done.stdout) or {"ok": False, "error": done.stderr[-500:]}
        except subprocess.TimeoutExpired:
            figures = {"ok": False, "error": f"took longer than {TIMEOUT:g} s"}
        return figures | {"tag": case.tag, "group": case.group}

    def limits(self) -> dict[str, Any]:
        """What this machine's Postgres and Redis can do at all."""
        return _last_line(self._run("limits.py", "--port", str(self._port), "--tmp", str(self._folder / "data")).stdout)

    def _run(self, program: str, *argv: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PICKAXE_")}
        if server := self._restate_server():
            environment["BENCH_RESTATE"] = str(server)
        command = [sys.executable, str(self._folder / program), *argv]
        process = subprocess.Popen(
            command, cwd=self._folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.terminate()  # the driver then ends what it started
            process.wait(60)
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def _restate_server(self) -> Path | None:
        if given := os.environ.get("BENCH_RESTATE"):
            return Path(given)
        if self._venvs is None:
            return None
        packages = self._venvs / "restate-npm" / "node_modules" / "@restatedev"
        return next(packages.glob("restate-server-*/bin/restate-server"), None)


def _free_ports() -> int:
    """The first of `PORTS` free ports in a row."""
    for first in range(18600, 32000, 20):
        with ExitStack() as stack:
            try:
                for port in range(first, first + PORTS):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise OSError(f"no {PORTS} free ports in a row between 18600 and 32000")


def _last_line(output: str) -> dict[str, Any]:
    lines = output.strip().splitlines()
    return dict(json.loads(lines[-1])) if lines else {}
