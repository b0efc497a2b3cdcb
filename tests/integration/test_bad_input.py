"""What a worker does with what it cannot use: nothing is lost, and somebody is told."""

from __future__ import annotations

import base64
import json
import subprocess
import sys

import pytest
import redis

from pickaxe import Pickaxe, agent, tool
from tests.workers import ROOT, eventually, running_worker


@tool(queue="tools")
def unheard_of() -> int:
    return 1


@agent
async def needs_unheard_of() -> int:
    return await unheard_of()


@agent(name="waiting")
async def waiting_elsewhere(name: str = "go", seconds: float = 3600) -> str: ...


@agent
async def nobody_knows_me() -> None: ...


@pytest.fixture
def app(services):
    app = Pickaxe(
        "other", agents=[nobody_knows_me, needs_unheard_of, waiting_elsewhere], tools=[unheard_of],
        settings=services.settings(),
    )  # fmt: skip
    yield app
    app.client.close()


def test_an_unknown_agent_waits_visibly_and_its_worker_goes_on(app, services, tmp_path):
    with running_worker(services.environment, tmp_path / "log", concurrency=1) as worker:
        lost = nobody_knows_me.enqueue()
        told = eventually(lambda: lost.view().reason, what="the reason")
        assert "does not know 'nobody_knows_me'" in told
        assert lost.status == "ready"
        known = waiting_elsewhere.enqueue("go", 0.1)
        assert known.result(timeout=30) == "timed out"
        assert worker.process.poll() is None


def test_an_unknown_tool_waits_visibly_and_burns_no_attempt(app, services, tmp_path):
    here = running_worker(
        services.environment, tmp_path / "agents.log", app="tests.integration.bad_input_app", queues="agents", name="a"
    )
    with here, running_worker(services.environment, tmp_path / "tools.log", queues="tools", name="b"):
        run = needs_unheard_of.enqueue()
        step = eventually(lambda: [s for s in run.steps() if s.reason], what="the reason")[0]
        assert "does not know 'unheard_of'" in step.reason
        assert (step.state, step.attempt) == ("ready", 0)


MALFORMED = {
    "not json": b"\x00\xff not json",
    "truncated": b'{"body": "W10=", "headers": {',
    "a list": b"[1, 2, 3]",
    "an empty object": b"{}",
    "a body that is not base64": json.dumps(
        {"body": "%%%", "content-encoding": "utf-8", "content-type": "application/json", "headers": {},
         "properties": {"body_encoding": "base64", "delivery_info": {}, "delivery_tag": "x"}}
    ).encode(),
    "pickle": json.dumps(
        {"body": base64.b64encode(b"\x80\x04N.").decode(), "content-encoding": "binary",
         "content-type": "application/x-python-serialize", "headers": {"task": "waiting", "id": "1"},
         "properties": {"body_encoding": "base64", "delivery_info": {}, "delivery_tag": "y"}}
    ).encode(),
}  # fmt: skip


def test_malformed_messages_are_set_aside_and_reported_and_the_queue_goes_on(app, services, tmp_path):
    with running_worker(services.environment, tmp_path / "log", concurrency=1) as worker:
        raw = redis.Redis.from_url(services.redis_url)
        for message in MALFORMED.values():
            raw.lpush("agents", message)
        run = waiting_elsewhere.enqueue("go", 0.1)
        assert run.result(timeout=30) == "timed out"
        letters = eventually(
            lambda: len(found := app.client.store.list_dead_letters()) >= len(MALFORMED) and found, what="letters"
        )
        assert len(letters) == len(MALFORMED)
        assert all(letter.reason for letter in letters)
        assert worker.process.poll() is None


def start(environment, **more):
    argv = [sys.executable, "-m", "celery", "-A", "tests.fleet_app", "worker", "-P", "solo", "-Q", "agents"]
    return subprocess.run(
        argv, cwd=ROOT, env={"PATH": "/usr/bin:/bin", "PICKAXE_BOOT_PATIENCE": "1", **environment, **more},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_worker_without_its_database_says_so_and_exits_with_3(services):
    done = start(services.environment, PICKAXE_DATABASE_URL="postgresql://u:secret@127.0.0.1:1/x")
    assert done.returncode == 3
    assert "cannot reach Postgres at postgresql://u:***@127.0.0.1:1/x" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_worker_without_redis_says_so_and_exits_with_3(services):
    done = start(services.environment, PICKAXE_REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert done.returncode == 3
    assert "cannot reach Redis at redis://127.0.0.1:1/0" in done.stderr
    assert "secret" not in done.stderr + done.stdout


@pytest.mark.parametrize(("version", "told"), [("9999", "upgrade pickaxe"), ("0000", "pickaxe migrate")])
def test_a_worker_on_another_schema_says_so_and_exits_with_3(app, services, version, told):
    with app.client.store.database.engine.connect() as connection:
        connection.exec_driver_sql(f"UPDATE pickaxe.alembic_version SET version_num = '{version}'")
    done = start(services.environment)
    assert done.returncode == 3
    assert told in done.stderr


def test_a_worker_waits_for_services_that_come_up_late(services, tmp_path):
    environment = {**services.environment, "PICKAXE_REDIS_URL": "redis://127.0.0.1:1/0", "PICKAXE_BOOT_PATIENCE": "30"}
    with running_worker(environment, tmp_path / "log") as worker:
        eventually(lambda: "Trying again" in worker.text(), what="the first retry")
        assert worker.process.poll() is None
