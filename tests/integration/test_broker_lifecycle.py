"""Who is told when a worker and its processes start and stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from pickaxe.broker import Message, Publisher, running_worker
from tests.integration.test_broker_support import events, eventually, make_app, worker


def moments(url: str, kind: str) -> list[int]:
    return [event["pid"] for event in events(url, kind)]


@pytest.mark.parametrize(("pool", "name"), [("solo", "solo"), ("threads", "threads"), ("custom", "coroutines")])
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGQUIT])
def test_in_a_single_process_worker_everything_happens_once_in_that_process(
    redis_url: str, tmp_path: Path, pool: str, name: str, stop: signal.Signals
) -> None:
    with worker(redis_url, tmp_path / "log", "-P", pool, "-c", "2", "-n", "me@here", queues="b,a") as process:
        eventually(lambda: events(redis_url, "worker-start"))
        process.stop(stop)
        pid = process.process.pid
    kinds = [event["kind"] for event in events(redis_url)]
    assert kinds == ["process-start", "worker-start", "process-stop", "worker-stop"]
    assert all(event["pid"] == pid for event in events(redis_url))
    start: dict[str, Any] = events(redis_url, "worker-start")[0]
    assert (start["pool"], start["name"], sorted(start["queues"])) == (name, "me@here", ["a", "b"])


def test_with_prefork_each_child_is_told_and_the_parent_is_the_worker(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "prefork", "-c", "2") as process:
        publisher = Publisher(make_app(redis_url))
        publisher.publish([Message(task="quick", id=f"{n}", kwargs={}, queue="celery") for n in range(20)])
        eventually(lambda: len(events(redis_url, "quick")) == 20)
        parent = process.process.pid
        children = moments(redis_url, "process-start")
        assert len(children) == len(set(children)) == 2
        assert parent not in children
        assert set(moments(redis_url, "quick")) <= set(children)
        assert moments(redis_url, "worker-start") == [parent]
        assert {event["pool"] for event in events(redis_url, "process-start")} == {"prefork"}
        process.stop()
    assert sorted(moments(redis_url, "process-stop")) == sorted(children)
    assert moments(redis_url, "worker-stop") == [parent]
    assert events(redis_url, "stranger") == []


def test_a_replaced_prefork_child_is_told_too(redis_url: str, tmp_path: Path) -> None:
    with worker(redis_url, tmp_path / "log", "-P", "prefork", "-c", "1", "--max-tasks-per-child", "1"):
        publisher = Publisher(make_app(redis_url))
        publisher.publish([Message(task="quick", id=f"{n}", kwargs={}, queue="celery") for n in range(3)])
        eventually(lambda: len(events(redis_url, "quick")) == 3)
        assert set(moments(redis_url, "quick")) <= set(moments(redis_url, "process-start"))
        assert len(set(moments(redis_url, "quick"))) == 3


def test_outside_of_a_worker_there_is_none(redis_url: str) -> None:
    assert running_worker(make_app(redis_url)) is None
