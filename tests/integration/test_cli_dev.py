"""`pickaxe dev` and `pickaxe demo` as processes: what they start is gone when they are, however they go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

WITHIN = 60.0


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PICKAXE_")}
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pickaxe", *arguments],
            cwd=folder,
            env=outside,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def pickaxe(folder: Path, *arguments: str) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PICKAXE_")}
    done = subprocess.run(
        [sys.executable, "-m", "pickaxe", *arguments],
        cwd=folder,
        env=outside,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def until(what: Callable[[], object], folder: Path) -> None:
    deadline = time.monotonic() + WITHIN
    while not what():
        assert time.monotonic() < deadline, (folder / "output").read_text()
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes], how: signal.Signals) -> int:
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    code = process.wait(30)
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive
    return code


def test_dev_serves_its_folder_and_stops_cleanly(tmp_path: Path) -> None:
    process = start(tmp_path, "dev", "--workers", "1", "--no-flower", "--no-reload")
    until(lambda: "all is well" in pickaxe(tmp_path, "doctor"), tmp_path)
    assert (tmp_path / ".pickaxe" / "dev.json").stat().st_mode & 0o077 == 0
    question = '{"text": "Which grant patents?", "pause": 0}'
    assert "started" in pickaxe(tmp_path, "run", "research", question)
    assert "'review'" in pickaxe(tmp_path, "signal", "latest", "review", '{"approved": true}')
    assert "run succeeded" in pickaxe(tmp_path, "show", "latest", "--follow")
    assert end(process, signal.SIGINT) == 0
    assert not (tmp_path / ".pickaxe" / "dev.json").exists()
    assert (tmp_path / ".pickaxe" / ".gitignore").read_text() == "*\n"  # there are data and passwords in it
    assert "export PICKAXE_DATABASE_URL=" in (tmp_path / "output").read_text()


APP = """
from pickaxe import Pickaxe, agent

@agent
async def greets(name: str) -> str:
    return f"hello {name}"

app = Pickaxe("mine", agents=[greets])
"""


def test_dev_below_a_projects_folder_serves_the_project(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    (tmp_path / "workers" / "app.py").write_text(APP)
    below, beside = tmp_path / "deep" / "er", tmp_path / "beside"
    below.mkdir(parents=True), beside.mkdir()
    process = start(below, "dev", "--workers", "1", "--no-flower", "--no-reload")
    until(lambda: "all is well" in pickaxe(beside, "doctor"), below)
    assert "hello Ada" in pickaxe(beside, "run", "greets", '"Ada"', "--wait", "60s")
    assert (tmp_path / ".pickaxe" / "dev.json").exists()
    assert sorted(path.name for path in below.iterdir()) == ["output"]
    assert end(process, signal.SIGINT) == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_stopped_leaves_nothing_behind(tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, "demo")
    until(lambda: "extract#1" in (tmp_path / "output").read_text(), tmp_path)
    assert end(process, how) == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(how, -how)
    assert "Traceback" not in (tmp_path / "output").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
