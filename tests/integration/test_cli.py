"""The command line against real services and a real worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Services

SLOW = pytest.mark.timeout(300)  # many processes, one after another

APP = '''
from pickaxe import Pickaxe, agent, tool, wait_for_signal, gather

@tool
def double(n: int) -> int:
    """Twice as much."""
    return n * 2

@tool(retries=0)
def boom(text: str) -> str:
    """Never works."""
    raise ValueError(text)

@agent
async def total(ns: list[int]) -> int:
    """The sum of the doubles."""
    return sum(await gather(*(double(n) for n in ns)))

@agent
async def breaks(text: str) -> str:
    """Fails."""
    return await boom(text)

@agent
async def tries(text: str) -> None:
    """Fails in a gather, with nothing left to be cancelled."""
    answers = await gather(boom(text), double(1), return_exceptions=True)
    raise answers[0]

@agent
async def asks(a: int, b: int = 1) -> int:
    """Waits for a person."""
    first = await double(a)
    return first + b + await wait_for_signal("more", int)

app = Pickaxe("cli-test", agents=[total, breaks, tries, asks], tools=[double, boom])
'''


class Project:
    """A folder with an app, and `pickaxe` run in it."""

    def __init__(self, folder: Path, services: Services) -> None:
        self.folder = folder
        self.workers = 0
        self.environment = {**os.environ, **services.environment, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        (folder / "workers").mkdir()
        (folder / "workers" / "__init__.py").touch()
        self.write(APP)

    def write(self, source: str) -> None:
        (self.folder / "workers" / "app.py").write_text(source)

    def line_of(self, text: str) -> int:
        lines = (self.folder / "workers" / "app.py").read_text().splitlines()
        return next(number for number, line in enumerate(lines, 1) if text in line)

    def __call__(self, *arguments: str, text: str = "", code: int = 0, errors: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pickaxe", *arguments],
            cwd=self.folder,
            env=self.environment,
            input=text,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr if code or errors else done.stdout

    def both(self, *arguments: str) -> str:
        """Standard output and error."""
        return self(*arguments, errors=True)

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).splitlines()[0])

    @contextmanager
    def worker(self, *options: str) -> Iterator[Path]:
        """A worker, and where it logs."""
        command = [sys.executable, "-m", "pickaxe", "worker", "-l", "WARNING", *options]
        self.workers += 1
        log = self.folder / f"worker-{self.workers}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            yield log
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    def until(self, run: str, state: str) -> Any:
        deadline = time.monotonic() + 60
        while (found := self.json("show", run))["state"] != state:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
        return found


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def project(tmp_path: Path, services: Services) -> Project:
    return Project(tmp_path, services)


@SLOW
def test_runs_are_started_waited_for_and_followed(project: Project) -> None:
    with project.worker("-c", "2", "-n", "cli-a@%h"):
        assert project("run", "total", "[1, 2, 3]", "--wait", "60s") == "12\n"

        entries = [json.loads(line) for line in project("run", "total", "[4, 5]", "--follow", "--json").splitlines()]
        assert entries[0]["state"] == "started"
        assert [t["step"] for t in entries if t.get("kind") == "step" and t["state"] == "succeeded"][-1] == "gather#1"
        assert entries[-1]["output"] == 18

        assert "✓ gather#1" in project("run", "total", "-", "--follow", text="[7]")

        boom = f"ValueError: no, at workers/app.py:{project.line_of('raise ValueError')} in boom"
        raised = f"'boom' failed: ValueError: no, at workers/app.py:{project.line_of('raise answers')} in tries"
        live = project("run", "tries", '"no"', "--follow", code=1)
        for told in (live, project("show", "latest", "--follow")):
            crossed = [line for line in told.splitlines() if "✗" in line]
            assert boom in crossed[0]
            assert raised in crossed[1]
            assert "2 calls: 1 succeeded, 1 failed" in next(line for line in told.splitlines() if "gather#1" in line)

        broken = project("run", "breaks", '"[bold]\\u001b[31m no"', "--wait", "60s", code=1)
        assert "ValueError: [bold]\\x1b[31m no" in broken

        shown = project("show", "latest")
        boom = f"workers/app.py:{project.line_of('raise ValueError')} in boom"
        assert f"ValueError: [bold]\\x1b[31m no, at {boom}" in shown
        assert f"raised at workers/app.py:{project.line_of('return await boom')} in breaks" in shown


@SLOW
def test_a_waiting_run_says_why_and_goes_on_with_its_signal(project: Project) -> None:
    with project.worker("-c", "2", "-n", "cli-s@%h"):
        started = project.json("run", "asks", '{"a": 20}', "--key", "k", "--metadata", '{"by": "me"}')
        assert started["new"]
        assert project.json("run", "asks", '{"a": 20}', "--key", "k") == {**started, "new": False}
        waiting = project.until(started["id"], "waiting")
        assert waiting["why"] == ["more#1: waits for the signal 'more'"]
        assert waiting["metadata"] == {"by": "me"}
        assert "more#1: waits for the signal 'more'" in project("show", "latest")
        kept = project("signal", "latest", "mroe", "5")
        assert "does not wait for 'mroe' now, and keeps it until it does" in kept
        assert "more#1: waits for the signal 'more'" in kept
        assert "did you mean 'more'?" in kept
        known = {"awaited": False, "waits_for": ["more"]}
        assert project.json("signal", "latest", "other") == {"id": started["id"], "done": True, **known}
        assert "the signal 'mroe', not waited for yet" in project("show", "latest")
        assert project.json("show", "latest")["kept_signals"] == {"mroe": 1, "other": 1}

        assert "was sent 'more'" in project("signal", "latest", "more", "1")
        assert "✓ run succeeded" in project("show", started["id"], "--follow")
        assert project.until(started["id"], "succeeded")["output"] == 42
        assert "is over" in project("signal", started["id"], "more", "1", code=1)

        health = project.json("doctor")
        assert health["ok"], health
        assert {"database", "redis", "workers", "handles", "queues"} <= {c["name"] for c in health["checks"]}


@SLOW
def test_a_run_whose_code_changed_is_shown_with_both_sides_and_retried(project: Project) -> None:
    with project.worker("-c", "1", "-n", "cli-b@%h"):
        started = project.json("run", "asks", '{"a": 1}')
        project.until(started["id"], "waiting")
    project.write(APP.replace("await double(a)", "await double(a + 1)"))
    with project.worker("-c", "1", "-n", "cli-c@%h"):
        project("signal", started["id"], "more", "1")
        found = project.until(started["id"], "paused")
        assert any("recorded:" in line for line in found["why"])
        assert any("code asks:" in line for line in found["why"])
        assert "1 wait for a person" in project("doctor")
    project.write(APP)
    with project.worker("-c", "1", "-n", "cli-d@%h"):
        assert "goes on" in project("retry", started["id"])
        assert project.until(started["id"], "succeeded")["output"] == 4


def test_a_run_that_its_key_has_found_is_said_not_to_be_new(project: Project) -> None:
    project("run", "total", "[1]", "--key", "k")
    same = project.both("run", "total", "[1]", "--key", "k")
    assert "nothing was started: the run with the key 'k' was enqueued " in same
    assert " ago, and is ready\n" in same
    assert 'and is ready; it has another input: {"ns": [1]}' in project.both("run", "total", "[2]", "--key", "k")
    assert len(project.json("runs")) == 1


LONELY = """
@tool(queue="nowhere")
def lonely(n: int) -> int:
    return n

@agent
async def alone(n: int) -> int:
    return await lonely(n)

@agent
async def stranger(n: int) -> int:
    return n

app = Pickaxe("cli-test", agents=[alone{}], tools=[lonely])
"""


@SLOW
def test_doctor_shows_open_work_that_nobody_takes_and_workers_of_one_name(project: Project) -> None:
    project.write(APP + LONELY.format(""))
    with project.worker("-c", "1", "-n", "cli-one@%h", "-Q", "agents,tools"):
        run = project.json("run", "alone", "1")["id"]
        project.until(run, "waiting")
        project.write(APP + LONELY.format(", stranger"))
        project("run", "stranger", "1")
        told = project("doctor", code=1)
        assert "1 call of 'lonely', the first for " in told
        assert f"({run[:18]} lonely#1): no worker takes from queue 'nowhere': pickaxe worker -Q nowhere" in told
        assert "no living worker knows agent 'stranger': list it in Pickaxe(agents=[...])" in told
        assert "node names" not in told

        with project.worker("-c", "1", "-n", "cli-two@%h", "-Q", "nowhere"):
            project.until(run, "succeeded")
            checks = project.json("doctor", code=1)["checks"]
            open_work = [c for c in checks if c["name"] == "open work"]
            assert [c["found"].partition("(")[0].split()[:4] for c in open_work] == [["1", "run", "of", "'stranger',"]]

        with project.worker("-c", "1", "-n", "cli-one@%h", "-Q", "agents") as log:
            wait_for(lambda: "a worker named cli-one@" in log.read_text())
            assert "give each worker a name of its own" in log.read_text()
            assert "2 workers are named cli-one@" in project("doctor")


def test_an_app_that_cannot_be_imported_keeps_nobody_from_looking_at_its_runs(project: Project) -> None:
    started = project.json("run", "total", "[1]")["id"]
    project.write("import nowhere_to_be_found\n")
    told = project.both("show", started)
    assert (
        "the app workers.app:app cannot be imported: ModuleNotFoundError: No module named 'nowhere_to_be_found'" in told
    )
    assert "Going on without it" in told
    assert "total" in project("runs")
    checks = project.json("doctor", code=1)["checks"]
    assert [check["found"].partition(":")[0] for check in checks if check["name"] == "app"] == ["the app workers.app"]
    assert "is cancelled" in project("cancel", started)
    assert "cannot be imported" in project("run", "total", "[1]", code=2)


def test_without_a_worker_runs_wait_and_say_so(project: Project) -> None:
    started = project.json("run", "total", "[1]")
    assert "no worker is running" in project("show", started["id"])
    assert "has not ended within" in project("run", "total", "[1]", "--wait", "300ms", code=5)
    assert "none is running" in project("doctor", code=1)
    assert project("runs").splitlines()[0].split()[:3] == ["run", "agent", "state"]
    assert len(project("runs").splitlines()) == 3
    assert "is cancelled" in project("cancel", started["id"])
    assert "is over" in project("cancel", started["id"], "--force", code=1)


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["run", "total", "hello"], 2, "is not JSON"),
        (["run", "total", '["x"]'], 2, "does not fit"),
        (["run", "nobody"], 1, "its agents are: asks, breaks, total, tries"),
        (["run", "total", "@missing.json"], 2, "missing.json cannot be read"),
        (["run", "total", "[1]", "--metadata", "5"], 2, "--metadata must be a JSON object"),
        (["run", "total", "[1]", "--delay", "soon"], 2, "is not a duration"),
        (["run", "asks", "5"], 2, "takes a JSON object with a, b"),
        (["show", "latest"], 1, "there is no run latest"),
        (["show", "'; drop table"], 1, "there is no run"),
        (["retry", "0000"], 1, "there is no run 0000"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_wrong_input_is_refused_in_a_sentence(project: Project, arguments: list[str], code: int, expected: str) -> None:
    assert expected in project(*arguments, code=code)


def test_a_fresh_database_is_migrated_once(tmp_path: Path, redis_url: str) -> None:
    from tests.services import create_database, drop_database

    url = create_database()
    try:
        project = Project(tmp_path, Services(url, redis_url))
        assert "run `pickaxe migrate`" in project("worker", "--wait", "0", code=3)
        assert "run `pickaxe migrate`" in project("runs", code=3)
        assert project.json("migrate")["before"] == 0
        assert "already" in project("migrate")
        assert project("runs").startswith("no runs yet")
    finally:
        drop_database(url)


def test_a_worker_waits_for_services_and_then_gives_up(tmp_path: Path) -> None:
    nowhere = Services("postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1/0")
    told = Project(tmp_path, nowhere)("worker", "--wait", "4s", code=3)
    assert "trying again for" in told
    assert told.strip().splitlines()[-1].startswith("pickaxe: cannot reach Postgres")


@pytest.mark.parametrize("pool", ["threads", "coroutines", "solo"])
def test_every_pool_runs_tasks(project: Project, pool: str) -> None:
    with project.worker("--pool", pool, "-n", f"cli-{pool}@%h"):
        assert project("run", "total", "[1, 2]", "--wait", "60s") == "6\n"
