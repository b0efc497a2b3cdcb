"""The coroutine pool, in real workers."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pickaxe.broker import Message, Publisher
from tests.integration.test_broker_support import events, eventually, leftovers, make_app, worker


def naps(count: int, seconds: float) -> list[Message]:
    return [
        Message(task="nap", id=f"nap-{n}", kwargs={"seconds": seconds, "n": n}, queue="celery") for n in range(count)
    ]


def test_coroutines_run_side_by_side_up_to_the_limit(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "50"):
        Publisher(make_app(redis_url)).publish(naps(150, 0.5))
        eventually(lambda: len(events(redis_url, "nap-end")) == 150)
        running = most = 0
        for event in events(redis_url):
            running += {"nap-start": 1, "nap-end": -1}.get(event["kind"], 0)
            most = max(most, running)
        assert 40 <= most <= 50
        eventually(lambda: leftovers(redis_url) == 0)


def test_each_coroutine_sees_its_own_message(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "50"):
        messages = [
            Message(task="whoami", id=f"id-{n}", kwargs={"expected": f"id-{n}"}, queue="celery") for n in range(200)
        ]
        Publisher(make_app(redis_url)).publish(messages)
        told = eventually(lambda: len(events(redis_url, "whoami")) == 200 and events(redis_url, "whoami"))
        assert all(event["right"] for event in told)


@pytest.mark.parametrize("pool", ["custom", "prefork", "solo", "threads"])
def test_a_sync_task_sees_its_own_message_in_every_pool(redis_url: str, tmp_path: Path, pool: str) -> None:
    with worker(redis_url, tmp_path / "log", "-P", pool, "-c", "2"):
        messages = [Message(task="quick", id=f"q{n}", kwargs={"n": n}, queue="celery") for n in range(20)]
        Publisher(make_app(redis_url)).publish(messages)
        told = eventually(lambda: len(events(redis_url, "quick")) == 20 and events(redis_url, "quick"))
        assert {(event["n"], event["message"]) for event in told} == {(n, f"q{n}") for n in range(20)}


def test_a_revoked_coroutine_is_cancelled_and_does_not_come_back(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url)
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "2"):
        Publisher(app).publish(naps(2, 60))
        eventually(lambda: len(events(redis_url, "nap-start")) == 2)
        app.control.revoke("nap-1", terminate=True)
        assert eventually(lambda: events(redis_url, "nap-cancelled")) == [{"kind": "nap-cancelled", "n": 1}]
        Publisher(app).publish([Message(task="quick", id="q", kwargs={}, queue="celery")])
        eventually(lambda: events(redis_url, "quick"))  # its slot is free again
        assert [event["n"] for event in events(redis_url, "nap-start")].count(1) == 1


def test_a_warm_shutdown_waits_and_acknowledges(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "10") as process:
        slow = Message(task="slow", id="s", kwargs={"seconds": 1}, queue="celery")
        Publisher(make_app(redis_url)).publish([slow, *naps(5, 1.0)])
        eventually(lambda: len(events(redis_url, "nap-start")) == 5 and events(redis_url, "slow-start"))
        process.stop(signal.SIGTERM)
        assert len(events(redis_url, "nap-end")) == 5
        assert len(events(redis_url, "slow-end")) == 1
        assert leftovers(redis_url) == 0


def test_a_cold_shutdown_cancels_and_gives_the_messages_back(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "10") as process:
        Publisher(make_app(redis_url)).publish(naps(5, 60))
        eventually(lambda: len(events(redis_url, "nap-start")) == 5)
        process.stop(signal.SIGQUIT)
        assert len(events(redis_url, "nap-cancelled")) == 5
        assert leftovers(redis_url) == 5
    with worker(redis_url, tmp_path / "log2", "-P", "custom", "-c", "10"):
        eventually(lambda: len(events(redis_url, "nap-start")) == 10)


def test_a_cold_shutdown_interrupts_a_warm_one(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "10") as process:
        Publisher(make_app(redis_url)).publish(naps(3, 60))
        eventually(lambda: len(events(redis_url, "nap-start")) == 3)
        process.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Warm shutdown" in process.log)
        process.stop(signal.SIGQUIT)
        assert len(events(redis_url, "nap-cancelled")) == 3
        assert leftovers(redis_url) == 3


def test_a_misbehaving_coroutine_costs_neither_its_slot_nor_the_worker(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "1") as process:
        hows = ["cancels itself", "exits", "raises"] * 3
        messages = [
            Message(task="misbehaving", id=f"m{n}", kwargs={"how": how}, queue="celery") for n, how in enumerate(hows)
        ]
        Publisher(make_app(redis_url)).publish([*messages, *naps(1, 0)])
        eventually(lambda: events(redis_url, "nap-end"))
        assert len(events(redis_url, "misbehaving")) == 9
        eventually(lambda: leftovers(redis_url) == 0)
        assert process.is_alive


@pytest.mark.parametrize("limits", [{"time_limit": 0.5}, {"soft_time_limit": 0.5}])
def test_time_limits_hold_for_coroutines(redis_url: str, tmp_path: Path, limits: dict[str, float]) -> None:
    app = make_app(redis_url)
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "1") as process:
        app.send_task("endless", **limits)
        Publisher(app).publish(naps(1, 0))
        eventually(lambda: events(redis_url, "nap-end"))
        eventually(lambda: leftovers(redis_url) == 0)
        assert "time limit (0.5s) exceeded" in process.log


def test_the_pool_grows_on_request(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url)
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "1"):
        Publisher(app).publish(naps(3, 60))
        eventually(lambda: len(events(redis_url, "nap-start")) == 1)
        app.control.pool_grow(2)
        eventually(lambda: len(events(redis_url, "nap-start")) == 3)


def test_links_errbacks_and_results_work_for_coroutines(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url)
    with worker(redis_url, tmp_path / "log", "-P", "custom", "-c", "4"):
        link = app.signature("quick", kwargs={"n": 41}, immutable=True)
        result = app.send_task("nap", kwargs={"n": 5}, link=link, ignore_result=False)
        assert result.get(timeout=10) == 5
        eventually(lambda: [event["n"] for event in events(redis_url, "quick")] == [41])
        errback = app.signature("quick", kwargs={"n": 42}, immutable=True)
        app.send_task("misbehaving", kwargs={"how": "raises"}, link_error=errback)
        eventually(lambda: [event["n"] for event in events(redis_url, "quick")] == [41, 42])
        (app.signature("nap", kwargs={"n": 1}) | app.signature("quick")).apply_async()
        eventually(lambda: [event["n"] for event in events(redis_url, "quick")] == [41, 42, 1])
