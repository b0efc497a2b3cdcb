"""A signal that comes while a chapter's log is being read belongs to that chapter, or to the next, never to both."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from pickaxe import Pickaxe, agent, continue_as, wait_for_signal
from pickaxe.engine._work import reduce


@agent
async def takes(seen: list[int] | None = None) -> list[int]:
    """Two signals for each of two chapters."""
    taken = [*(seen or []), await wait_for_signal("n", int), await wait_for_signal("n", int)]
    if len(taken) == 2:
        continue_as(taken)
    return taken


@pytest.fixture
def app(services) -> Iterator[Pickaxe]:
    app = Pickaxe("carried", agents=[takes], settings=services.settings())
    yield app
    app.client.close()


@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_signal_that_comes_between_the_loading_of_a_run_and_its_commit_is_taken_once(app, early):
    run, engine = takes.enqueue(), app.engine
    commit, numbers = engine.store.commit, iter(range(4))
    for _ in range(early):
        run.signal("n", next(numbers))

    def commit_after_signals(row, **values):
        for number in numbers:
            run.signal("n", number)
        return commit(row, **values)

    engine.store.commit = commit_after_signals
    while run.status in ("ready", "waiting"):
        reduce(engine, uuid.UUID(run.id))
        assert run.status != "waiting", "a signal was lost"
    assert run.result(timeout=30) == [0, 1, 2, 3]
