"""The whole fleet, for real: a worker, a run, a person's signal, a report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pickaxe import Client, Run
from pickaxe.cli._project import load_app
from tests.conftest import Services

ROOT = Path(__file__).parents[2]


@pytest.fixture
def worker(services: Services) -> Iterator[None]:
    environment = {**os.environ, **services.environment, "MODEL_PACE": "0"}
    command = [sys.executable, "-m", "pickaxe", "worker", "-c", "2", "-n", f"fleet-{os.getpid()}@%h", "-l", "WARNING"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    yield
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


@pytest.mark.usefixtures("worker")
def test_a_question_becomes_a_reviewed_report(services: Services) -> None:
    client = Client(services.settings())
    research = load_app("workers.app:app", ROOT).handles["research"]
    question = {"text": "Which of these licences grant patents without copyleft?", "pause": 0.1}
    [run] = client.enqueue(research, [((question,), {})], [_no_options()])
    wait_until(run, "waiting for the signal 'review'")
    assert run.signal("review", {"approved": True, "reviewer": "Ada"})
    report = run.result(timeout=60)
    assert report.suitable == ["Apache-2.0"]
    assert report.approved
    assert "Approved by Ada." in report.markdown
    assert report.documents == 17
    client.close()


def wait_until(run: Run[object], state: str) -> None:
    deadline = time.monotonic() + 60
    while run.state() != state:
        assert time.monotonic() < deadline, run.state()
        time.sleep(0.05)


def _no_options() -> object:
    from pickaxe.authoring._handles import EnqueueOptions

    return EnqueueOptions()
