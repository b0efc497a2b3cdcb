"""What is set aside, seen and decided on the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from pickaxe.broker import BrokerApp, Message, Publisher
from tests.conftest import Services
from tests.integration.test_cli import Project

SLOW = pytest.mark.timeout(300)  # many processes, one after another

APP = '''
import os
from pathlib import Path
from pickaxe import Pickaxe, agent, gather, tool

@tool
def convert(path: str) -> str:
    """Kills its process until the file is mended."""
    if Path(path).exists():
        os._exit(9)
    return path.upper()

@tool(effect="at_most_once")
def charge(order: str, deadly: bool) -> str:
    """Nobody sees whether it happened."""
    if deadly:
        os._exit(9)
    return f"paid {order}"

@agent
async def converts(path: str) -> str:
    """Needs a conversion."""
    return await convert(path)

@agent
async def charges(order: str, deadly: bool = True) -> str:
    """Needs a payment."""
    return "; ".join(await gather(charge(order, deadly), charge(order, False)))

app = Pickaxe("cli-aside", agents=[converts, charges], tools=[convert, charge])
'''


@pytest.fixture
def project(tmp_path: Path, services: Services) -> Project:
    project = Project(tmp_path, services)
    project.write(APP)
    return project


def until(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return found


def listed(project: Project, what: str) -> list[Any]:
    return [item for item in project.json("quarantine") if item["what"] == what]


@SLOW
def test_a_quarantined_step_is_listed_with_its_evidence_and_released(project: Project, tmp_path: Path) -> None:
    assert "nothing is set aside" in project("quarantine")
    broken = tmp_path / "broken.doc"
    broken.touch()
    with project.worker("-c", "2", "-n", "cli-q@%h"):
        started = project.json("run", "converts", json.dumps(str(broken)))
        # How a process ended is told by its parent, which may come later.
        [found] = until(
            lambda: [s for s in listed(project, "step") if all(past["exit"] for past in s["history"])],
            "it is quarantined, and both ends are known",
        )
        assert (found["run"], found["key"], found["state"]) == (started["id"], "convert#1", "quarantined")
        assert [past["exit"] for past in found["history"]] == ["exit status 9"] * 2

        table = project("quarantine")
        assert "attempt 2: worker process cli-q@" in table
        assert "was ended by exit status 9" in table
        assert "after it began)" in table  # evidence is evidence: no command among it

        shown = project("show", "latest")
        assert "! quarantined" in shown
        assert f"pickaxe retry {started['id'][:18]} 'convert#1'" in shown
        assert "it kills the worker processes that run it" in project("runs")
        assert project.json("runs")[0]["aside"][0]["step"] == "convert#1"
        assert "1 steps have an unknown outcome or kill their workers" in (told := project("doctor"))
        assert told.splitlines()[-1] == "1 warning"

        assert "has no step" in project("retry", started["id"], "nothing#1", code=1)
        broken.unlink()
        assert "runs its step convert#1 again" in project("retry", started["id"], "convert#1")
        assert project.until(started["id"], "succeeded")["output"] == str(broken).upper()
        assert "not quarantined" in project("retry", started["id"], "convert#1", code=1)
        assert "nothing is set aside" in project("quarantine")


@SLOW
def test_an_unknown_outcome_is_shown_and_resolved_in_every_way(project: Project) -> None:
    with project.worker("-c", "2", "-n", "cli-u@%h"):
        runs = [project.json("run", "charges", '{"order": "o1"}')["id"] for _ in range(3)]
        until(lambda: len(listed(project, "step")) == 3, "their outcomes are unknown")
        why = "\n".join(project.json("show", runs[0])["why"])
        assert "charge#1 is unknown: the worker process that ran attempt 1 died: whether its effect happened" in why
        assert f"pickaxe resolve {runs[0][:18]} 'charge#1' --result JSON | --failed WHY | --again" in why
        assert "? unknown" in project("show", runs[0])

        assert "running it again may repeat its effect" in project("retry", runs[0], "charge#1", code=1)
        assert "takes exactly one of" in project("resolve", runs[0], "charge#1", code=2)
        assert "takes exactly one of" in project("resolve", runs[0], "charge#1", "--again", "--failed", "no", code=2)
        assert "is not JSON" in project("resolve", runs[0], "charge#1", "--result", "paid", code=2)
        assert "the result of tool 'charge'" in project("resolve", runs[0], "charge#1", "--result", "17", code=2)

        assert project.json("resolve", runs[0], "charge#1", "--result", '"paid by hand"', "--by", "Ada")["done"]
        assert project.until(runs[0], "succeeded")["output"] == "paid by hand; paid o1"
        resolved = project.json("show", runs[0])["steps"]
        assert [s["history"][-1]["by"] for s in resolved if s["key"] == "charge#1"] == ["Ada"]
        assert "resolved by Ada" in project("show", runs[0], "--all")
        assert "only a step whose outcome is unknown" in project("resolve", runs[0], "charge#1", "--again", code=1)

        assert "has failed" in project("resolve", runs[1], "charge#1", "--failed", "the bank says no")
        assert "the bank says no" in project.until(runs[1], "failed")["error"]["message"]

        assert "runs again" in project("resolve", runs[2], "charge#1", "--again")
        until(lambda: listed(project, "step"), "it died again, and nobody ran it a second time by itself")
        told = [json.loads(line) for line in project("show", runs[0], "--follow", "--json").splitlines()]
        # When it began to run was not told by the process that died of it: that comes from the log, whenever.
        states = [t["state"] for t in told if t.get("step") == "charge#1" and t["state"] != "running"]
        assert states[-3:] == ["lost", "unknown", "succeeded"]


@SLOW
def test_dead_letters_are_listed_sent_again_and_dropped(project: Project, services: Services) -> None:
    client = redis.Redis.from_url(services.redis_url)
    publisher = Publisher(BrokerApp("stranger", services.redis_url, None, None))
    with project.worker("-c", "1", "-n", "cli-l@%h"):
        client.lpush("agents", b"no message at all")
        publisher.publish([Message(task="converts", id="x", kwargs={"run": "no id"}, queue="agents")])
        publisher.publish([Message(task="reports", id="y", kwargs={"week": 17}, queue="agents")])
        until(lambda: len(listed(project, "letter")) == 3, "they are set aside")
        letters = {letter["reason"].split(":")[0].split(" is ")[0]: letter for letter in listed(project, "letter")}
        raw = letters["the envelope"]
        assert (raw["queue"], raw["can_be_sent_again"]) == ("agents", False)
        table = project("quarantine")
        assert f"letter-{raw['id']}" in table
        assert "it cannot be sent again" in table
        assert "converts" in table
        assert "3 messages could not be read" in project("doctor")

        assert "was no message at all" in project("retry", f"letter-{raw['id']}", code=1)
        assert "is forgotten" in project("drop", f"letter-{raw['id']}")
        assert "there is no dead letter" in project("drop", f"letter-{raw['id']}", code=1)
        assert "there is no dead letter" in project("retry", "letter-4711", code=1)
        assert "names no dead letter" in project("drop", "latest", code=2)
        stranger = next(letter for letter in listed(project, "letter") if "'reports'" in letter["reason"])

    # After a deploy that knows the task.
    project.write(APP + STRANGER)
    with project.worker("-c", "1", "-n", "cli-m@%h"):
        assert "was sent to queue 'agents' again" in project("retry", f"letter-{stranger['id']}")
        until((project.folder / "reported").exists, "the message has reached its task")
        assert (project.folder / "reported").read_text() == "17"
        assert stranger["id"] not in [letter["id"] for letter in listed(project, "letter")]


STRANGER = """
@app.task(name="reports")
def reports(week):
    Path("reported").write_text(str(week))
"""
