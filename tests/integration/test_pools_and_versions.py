"""The same agents in every pool; and what becomes of a run whose agent's code changes under it."""

from __future__ import annotations

import json
import urllib.request

import pytest

from pickaxe import errors
from tests.workers import eventually, running_worker


@pytest.fixture
def fleet(services, monkeypatch):
    """The test app in this process, bound to this test's services."""
    import importlib
    import sys

    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    sys.modules.pop("tests.fleet_app", None)
    module = importlib.import_module("tests.fleet_app")
    yield module
    module.app.client.close()


POOLS = {
    "prefork": {"pool": "prefork"},
    "threads": {"pool": "threads", "concurrency": 8},
    "solo": {"pool": "solo"},
    "coroutines": {"pool": "custom", "concurrency": 50},
}


@pytest.mark.parametrize("pool", POOLS)
def test_an_agent_runs_the_same_in_every_pool(fleet, services, tmp_path, pool):
    environment = {**services.environment, "CELERY_CUSTOM_WORKER_POOL": "pickaxe.broker:CoroutinePool"}
    with running_worker(environment, tmp_path / "log", **POOLS[pool]) as worker:
        run = fleet.everything.enqueue(fleet.Question(text="x", parts=5))
        eventually(run.state, what="the published state")
        run.signal("verdict", 1)
        result = run.result(timeout=40)
        assert result["both"] == [2, 11]
        assert result["parts"] == [f"x-{i}" for i in range(5)]
        assert worker.stop() == 0


def parked(fleet, services, log):
    run = fleet.edited.enqueue()
    with running_worker(services.environment, log, concurrency=1, name="old"):
        eventually(lambda: [s for s in run.steps() if s.kind == "signal"], what="the wait")
    return run


def test_a_changed_call_pauses_the_run_with_both_sides_shown_and_retry_goes_on(fleet, services, tmp_path):
    run = parked(fleet, services, tmp_path / "old.log")
    run.signal("go")
    with running_worker(
        {**services.environment, "PICKAXE_TEST_VERSION": "changed"}, tmp_path / "new.log", concurrency=1
    ):
        with pytest.raises(errors.RunPausedError, match="double#1") as caught:
            run.result(timeout=30)
        assert '{"x":2}' in str(caught.value)
        assert '{"x":1}' in str(caught.value)
    with running_worker(services.environment, tmp_path / "fixed.log", concurrency=1):
        assert run.status == "paused"
        assert run.retry()
        assert run.result(timeout=30) == [2, 6]


def test_a_call_added_elsewhere_shifts_nothing(fleet, services, tmp_path):
    run = parked(fleet, services, tmp_path / "old.log")
    run.signal("go")
    with running_worker({**services.environment, "PICKAXE_TEST_VERSION": "added"}, tmp_path / "new.log", concurrency=1):
        assert run.result(timeout=30) == [2, 6]
    assert [s.attempt for s in run.steps() if s.key == "double#1"] == [1]


def test_flower_sees_agents_and_tools_by_name_with_ids_that_lead_to_the_run(fleet, services, tmp_path):
    pytest.importorskip("flower")
    import os
    import socket
    import subprocess
    import sys

    from tests.workers import ROOT

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "celery", "-A", "tests.fleet_app", "flower", "--address=127.0.0.1", f"--port={port}"]
    environment = {**os.environ, **services.environment, "FLOWER_UNAUTHENTICATED_API": "true", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "flower.log").open("wb") as log:
        flower = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:

        def api(path):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=5) as answer:
                    return json.load(answer)
            except OSError:
                return None

        eventually(lambda: api("tasks") is not None, every=0.5, what="Flower's start")
        # What goes on in its process has no message, and so is no task in Flower.
        plain = {**services.environment, "PICKAXE_CONTINUATION": "plain"}
        with running_worker(plain, tmp_path / "log", concurrency=1):
            run = fleet.call.enqueue("double", 4)
            assert run.result(timeout=30) == 8
            ids = {f"{run.id}:{rest}" for rest in ("call:0", "double#1:1", "call:1")}
            tasks = eventually(
                lambda: ids <= (found := api("tasks") or {}).keys() and found, every=0.5, what="the tasks in Flower"
            )
        names = {task["name"] for task in tasks.values() if task["name"]}
        assert {"call", "double"} <= names
        assert f"{run.id}:double#1:1" in tasks
        assert tasks[f"{run.id}:double#1:1"]["args"] == '{"x":4}'
    finally:
        flower.terminate()
        flower.wait(20)
