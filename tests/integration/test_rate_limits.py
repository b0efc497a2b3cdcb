"""A fleet-wide limit under load: never exceeded, and what waits for it stands in nobody's way."""

from __future__ import annotations

import contextlib
import statistics

import pytest

from pickaxe import Pickaxe
from tests.integration.limits_app import spend, unrelated
from tests.workers import eventually, running_worker

LIMIT, CALLS, WORKERS = 50, 2000, 4


def lines(ledger, word):
    found = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [(float(at), float(value)) for kind, at, value in found if kind == word]


def messages(client, queue):
    return sum(client.llen(key) for key in client.scan_iter(f"{queue}*") if client.type(key) == "list")


@pytest.mark.timeout(180)
def test_four_workers_share_50_calls_a_second_and_what_waits_is_in_nobodys_way(services, tmp_path):
    app = Pickaxe("limits", agents=[spend, unrelated], tools=[], settings=services.settings())
    ledger = tmp_path / "ledger"
    environment = {**services.environment, "PICKAXE_TEST_LEDGER": str(ledger)}
    with contextlib.ExitStack() as stack:
        for n in range(WORKERS):
            stack.enter_context(
                running_worker(
                    environment,
                    tmp_path / f"{n}.log",
                    app="tests.integration.limits_app",
                    pool="solo",
                    queues="agents,limited,free",
                    name=f"w{n}",
                )
            )
        unrelated.enqueue(40).result(timeout=60)
        alone = statistics.median(wait for _, wait in lines(ledger, "free"))
        run = spend.enqueue(CALLS)
        eventually(lambda: len(lines(ledger, "limited")) >= LIMIT, what="the limited calls")
        beside = len(lines(ledger, "free"))
        in_broker, others = [], []
        while run.status in ("ready", "waiting"):
            others.append(unrelated.enqueue(20))
            others[-1].result(timeout=60)
            in_broker.append(messages(app.client.redis, "limited"))
        assert run.result() == CALLS
    starts = sorted(at for at, _ in lines(ledger, "limited"))
    among = statistics.median(wait for _, wait in lines(ledger, "free")[beside:])
    fullest = max(sum(1 for at in starts[i : i + 2 * LIMIT] if at < start + 1) for i, start in enumerate(starts))
    used = (CALLS - LIMIT) / (starts[-1] - starts[LIMIT]) / LIMIT
    print(
        f"fullest second {fullest}, used {used:.1%}, unrelated {alone * 1e3:.1f} ms alone, {among * 1e3:.1f} ms beside"
    )
    assert len(starts) == CALLS
    assert fullest <= LIMIT
    assert used >= 0.95
    # A call waits as a row and not as a message, and its message comes when it may start.
    assert max(in_broker) < CALLS / 4
    assert sum(step.attempt for step in run.steps() if step.kind == "tool") <= CALLS * 1.25
    assert all(step.attempt == 1 and not step.history for other in others for step in other.steps())
    app.client.close()
