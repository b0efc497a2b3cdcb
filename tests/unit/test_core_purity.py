"""I/O, threads and blocking calls are refused inside agents, and only there."""

# ruff: noqa: PTH102, PTH107, PTH123, PTH208, SIM115 - every way of doing it is the subject here

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
import zoneinfo
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pickaxe import agent, tool
from pickaxe.core import _purity
from pickaxe.errors import ImpureAgentError, RunFailedError
from pickaxe.testing import simulate

EFFECTS: dict[str, Callable[[], Any]] = {
    "open": lambda: open("/etc/hostname"),
    "pathlib": lambda: Path("/etc/hostname").read_text(),
    "listdir": lambda: os.listdir("/"),
    "scandir": lambda: list(os.scandir("/")),
    "mkdir": lambda: os.mkdir("/tmp/never"),
    "remove": lambda: os.remove("/tmp/never"),
    "environment": lambda: os.environ.__setitem__("NEVER", "1"),
    "tempfile": lambda: tempfile.mkdtemp(),
    "rmtree": lambda: shutil.rmtree("/tmp/never"),
    "socket": lambda: socket.socket(),
    "name lookup": lambda: socket.getaddrinfo("localhost", 80),
    "time.sleep": lambda: time.sleep(1),
    "thread": lambda: threading.Thread(target=print).start(),
    "executor": lambda: ThreadPoolExecutor().submit(print),
    "subprocess": lambda: subprocess.run(["true"]),
    "os.system": lambda: os.system("true"),
    "fork": lambda: os.fork(),
    "sqlite": lambda: sqlite3.connect(":memory:"),
    "urllib": lambda: urllib.request.urlopen("http://localhost:1/"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_an_effect_in_an_agent_is_refused_at_its_line(name: str) -> None:
    async def main() -> None:
        EFFECTS[name]()

    with pytest.raises(
        RunFailedError, match=r"ImpureAgentError: an agent tried to .* at .*test_core_purity.py:\d+"
    ) as refused:
        simulate(agent(main)).result()
    assert "move this line into a tool" in str(refused.value)


@pytest.mark.parametrize(
    "coroutine",
    [
        lambda: asyncio.to_thread(print),
        lambda: asyncio.get_running_loop().run_in_executor(None, print),
        lambda: asyncio.open_connection("localhost", 1),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.start_server(lambda *_: None, "localhost", 0),
    ],
)
def test_asynchronous_io_is_refused_at_its_line(coroutine: Callable[[], Any]) -> None:
    async def main() -> None:
        await coroutine()

    with pytest.raises(RunFailedError, match=r"ImpureAgentError: .* at .*test_core_purity.py:\d+"):
        simulate(agent(main)).result()


def test_sleeping_in_the_wrong_way_tells_the_right_one() -> None:
    async def main() -> None:
        time.sleep(0.1)

    with pytest.raises(RunFailedError, match=r"await asyncio\.sleep"):
        simulate(agent(main)).result()


def test_a_tool_may_do_all_of_it() -> None:
    @tool
    def read(path: str) -> str:
        time.sleep(0)
        thread = threading.Thread(target=list)
        thread.start()
        thread.join()
        return Path(path).read_text()[:1]

    async def main() -> str:
        return await read(__file__)

    assert simulate(agent(main)).result() == '"'


def test_imports_logging_printing_tracebacks_and_time_zones_are_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = tmp_path / "imported_by_an_agent.py"
    module.write_text("VALUE = 1\n")
    sys.path.insert(0, str(tmp_path))
    handler = logging.FileHandler(tmp_path / "late.log", delay=True)
    logger = logging.getLogger("test.purity")
    logger.addHandler(handler)

    async def main() -> int:
        import imported_by_an_agent  # type: ignore[import-not-found]

        print("printed")
        logger.error("logged")
        zoneinfo.ZoneInfo.clear_cache()
        zoneinfo.ZoneInfo("Europe/Berlin")
        try:
            raise ValueError("x")
        except ValueError:
            traceback.format_exc()

        class Late(pydantic.BaseModel):
            value: int

        return Late.model_validate({"value": imported_by_an_agent.VALUE}).value

    try:
        assert simulate(agent(main)).result() == 1
    finally:
        sys.path.remove(str(tmp_path))
        handler.close()
        logger.removeHandler(handler)
    assert "printed" in capsys.readouterr().out
    assert "logged" in (tmp_path / "late.log").read_text()


def test_a_file_that_is_merely_called_like_an_allowed_one_is_not(tmp_path: Path) -> None:
    package = tmp_path / "tokenizers"
    package.mkdir()
    (package / "__init__.py").write_text("def load():\n    return open(__file__).read()\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import tokenizers  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(tmp_path))

    async def main() -> None:
        tokenizers.load()

    with pytest.raises(RunFailedError, match="open a file"):
        simulate(agent(main)).result()


def test_the_guard_is_down_after_the_reduction() -> None:
    async def main() -> None: ...

    simulate(agent(main))
    assert Path(__file__).exists()
    threading.Thread(target=list).start()


def test_the_guard_is_down_after_a_reduction_that_failed() -> None:
    async def main() -> None:
        open("/etc/hostname")

    simulate(agent(main))
    assert Path(__file__).read_bytes()


def test_other_threads_are_not_guarded() -> None:
    opened = threading.Event()
    go = threading.Event()

    def elsewhere() -> None:
        go.wait(5)
        Path(__file__).read_bytes()
        opened.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with _purity.guarded():
        go.set()
        assert opened.wait(5)
        with pytest.raises(ImpureAgentError):
            open(__file__)
    thread.join()


def test_pickaxes_own_work_can_be_let_through() -> None:
    with _purity.guarded():
        with _purity.allowed():
            assert Path(__file__).read_bytes()
        with pytest.raises(ImpureAgentError):
            open(__file__)
    assert Path(__file__).read_bytes()


def test_guards_nest() -> None:
    with _purity.guarded():
        with _purity.guarded():
            pass
        with pytest.raises(ImpureAgentError):
            open(__file__)
