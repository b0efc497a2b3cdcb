"""Who else may be here, and what if the answer never comes? The statements themselves, in the worst order."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from pickaxe import Pickaxe, _values, tool
from pickaxe._states import StepState
from pickaxe._uuids import uuid7
from pickaxe.engine import _attempts
from pickaxe.engine._claims import claim
from pickaxe.engine._engine import Engine
from pickaxe.store import Database, NewRun, Outcome, Settled, Store


class ForgetfulDatabase(Database):
    """Loses the answers to statements that were carried out, as a cut connection does."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pool_size=20)
        self.losing: str | None = None
        self.lost: list[str] = []
        self.deadlocks = 0

    def rows(self, name: str, /, **parameters: Any) -> Any:
        def attempt() -> Any:
            found = Database.rows(self, name, **parameters)
            if name == self.losing:
                self.losing = None
                self.lost.append(name)
                raise OperationalError(name, {}, psycopg.OperationalError("the connection is lost"))
            return found

        return self.patiently(attempt)

    def _may_try_again(self, error: DBAPIError, deadline: float) -> None:
        self.deadlocks += isinstance(error.orig, psycopg.errors.DeadlockDetected)
        super()._may_try_again(error, deadline)


@pytest.fixture
def database(database_url: str) -> Iterator[ForgetfulDatabase]:
    database = ForgetfulDatabase(database_url)
    yield database
    database.close()


@pytest.fixture
def store(database: ForgetfulDatabase) -> Store:
    return Store(database, redispatch=5)


def new_run(store: Store) -> Any:
    """A run that has been enqueued."""
    run = NewRun(uuid7(), "agent", "1", "agents", 5, "{}", due_in=5)
    assert store.enqueue([run]) == [run.id]
    return store.load(run.id).row


def step(key: str, kind: str = "tool", state: str = "ready", **more: Any) -> dict[str, Any]:
    known = {"key": key, "kind": kind, "name": key, "digest": "", "state": state, "queue": "tools", "due_in": 5.0}
    return known | {"index": 0, "input": "{}", "options": "{}"} | more


def commit(store: Store, run: Any, steps: list[dict[str, Any]], state: str = "waiting", **more: Any) -> Any:
    values: dict[str, Any] = {
        "state": state, "new_head": run.head, "output": None, "error": None, "reason": None, "published": None,
        "started": run.now, "owner": "committer", "steps": _values.dump(steps) if steps else None, "children": None,
        "cancels": [], "settled": [], "carried": [],
    }  # fmt: skip
    return store.commit(run, **{**values, **more})


def register(store: Store, worker: str = "worker") -> str:
    store.register_worker(worker, name=worker, pid=1, handles=[])
    return worker


def settle(store: Store, run: Any, key: str, **guard: Any) -> Any:
    guard = guard or {"attempt": 1, "owner": "worker"}
    return store.settle(run.id, key, StepState.SUCCEEDED, origin=[StepState.RUNNING], output="1", **guard)


def query(store: Store, text: str, *parameters: Any) -> list[Any]:
    with store.database.engine.connect() as connection:
        return list(connection.exec_driver_sql(text, parameters).all())


# Answers that are lost: the statement is tried again, and must not be carried out twice.


def test_a_signal_whose_answer_is_lost_is_sent_once(store: Store, database: ForgetfulDatabase) -> None:
    run = new_run(store)
    database.losing = "send_signal"
    store.send_signal(run.id, "go", "1", None)
    assert database.lost == ["send_signal"]
    assert query(store, "SELECT count(*) FROM pickaxe.signal") == [(1,)]


def test_an_event_whose_answer_is_lost_is_published_once(database_url: str, store: Store) -> None:
    published: list[Any] = []

    class Losing(Database):
        def transaction(self, work: Any) -> Any:
            published.append(Database.transaction(self, work))
            published.append(Database.transaction(self, work))
            return published[-1]

    losing = Losing(database_url)
    Store(losing).publish_event("key", "", "1")
    losing.close()
    assert len(published) == 2
    assert query(store, "SELECT count(*) FROM pickaxe.event") == [(1,)]


def test_a_run_whose_answer_is_lost_is_enqueued_once_and_found(store: Store, database: ForgetfulDatabase) -> None:
    database.losing = "enqueue"
    runs = [NewRun(uuid7(), "agent", "1", "agents", 5, "{}", idempotency_key=key) for key in ("key", None)]
    assert store.enqueue(runs) == [run.id for run in runs]
    assert query(store, "SELECT count(*) FROM pickaxe.run") == [(2,)]


def test_a_process_whose_registration_is_not_answered_has_one_slot(store: Store, database: ForgetfulDatabase) -> None:
    database.losing = "register_worker"
    slot = store.register_worker("one", name="one", pid=1, handles=[])
    assert query(store, "SELECT slot FROM pickaxe.worker") == [(slot,)]


def test_a_claim_whose_answer_is_lost_is_found_at_the_beat_and_given_back(
    store: Store, database: ForgetfulDatabase
) -> None:
    run, worker = new_run(store), register(store)
    commit(store, run, [step("one")])
    database.losing = "claim"
    assert store.claim(run.id, "one", 1, worker, grace=2) is None
    [token] = store.beat(worker) or []
    assert store.give_back(token, worker)
    assert not store.give_back(token, worker)
    assert query(store, "SELECT state, deaths FROM pickaxe.step") == [("ready", 1)]
    assert store.claim(run.id, "one", 2, worker, grace=2) is not None


def test_a_commit_whose_answer_is_lost_is_not_made_twice(store: Store, database: ForgetfulDatabase) -> None:
    run = new_run(store)
    database.losing = "commit"
    assert not commit(store, run, [step("one")]).committed
    assert query(store, "SELECT key, state FROM pickaxe.step") == [("one", "ready")]
    assert query(store, "SELECT state FROM pickaxe.run") == [("waiting",)]


# Predicates that held when they were read, and do not any more.


def test_a_result_is_recorded_once_whoever_else_brings_one(store: Store) -> None:
    run, worker = new_run(store), register(store)
    commit(store, run, [step("one")])
    store.claim(run.id, "one", 1, worker, grace=2)
    assert not settle(store, run, "one", attempt=2, owner=worker).accepted
    assert not settle(store, run, "one", attempt=1, owner="another").accepted
    assert settle(store, run, "one").accepted
    assert not settle(store, run, "one").accepted
    assert query(store, "SELECT wake FROM pickaxe.run") == [(1,)]


def test_a_reduction_of_a_run_that_has_moved_is_refused(store: Store) -> None:
    run = new_run(store)
    assert commit(store, run, [step("one")]).committed
    store.send_signal(run.id, "go", "1", None)
    # Ready again, at the same head: but another reduction was committed since this one was loaded.
    assert not commit(store, run, [step("one")]).committed
    fresh = store.load(run.id).row
    store.cancel_run(run.id, reason="", error="{}", timed_out=False, force=False)
    assert not commit(store, fresh, [step("two")]).committed
    assert query(store, "SELECT key FROM pickaxe.step") == [("one",)]


def test_a_reduction_is_not_undone_by_what_arrives_meanwhile_and_the_run_stays_ready_for_that(store: Store) -> None:
    run, rival = new_run(store), None
    store.send_signal(run.id, "go", "1", None)
    rival = store.load(run.id).row
    done = commit(store, run, [step("one")])
    assert done.committed
    assert done.moved
    assert store.load(run.id).row.state == "ready"
    # One that was loaded after the signal came, but before that commit.
    assert not commit(store, rival, [step("one")]).committed
    assert query(store, "SELECT state, due IS NOT NULL FROM pickaxe.run") == [("ready", True)]


def test_a_process_that_was_declared_dead_takes_nothing_until_it_has_a_new_name(store: Store) -> None:
    run, worker = new_run(store), register(store)
    commit(store, run, [step("one")])
    store.end_worker(worker, "died")
    assert store.claim(run.id, "one", 1, worker, grace=2) is None
    assert store.claim(run.id, "one", 1, register(store, "new name"), grace=2) is not None


def test_the_calls_of_a_process_nobody_knows_are_issued_again(store: Store) -> None:
    run = new_run(store)
    commit(store, run, [step("inline", state="running")], owner="never registered")
    assert [row.key for row in store.reclaim_steps()] == ["inline"]
    assert store.reclaim_steps() == []


def test_a_call_that_starts_while_the_sweeper_finds_it_late_is_not_failed(store: Store) -> None:
    run, worker = new_run(store), register(store)
    commit(store, run, [step("one", expires_in=0.0)])
    [late] = store.expired_steps()
    store.claim(run.id, "one", 1, worker, grace=2)
    # As the sweeper does it.
    failed = store.settle(
        late.run_id, late.key, StepState.FAILED, origin=[StepState(late.state)], attempt=late.attempt, error="{}"
    )
    assert not failed.accepted
    assert settle(store, run, "one").accepted


def test_a_call_whose_heartbeat_comes_while_the_sweeper_finds_it_overdue_goes_on(store: Store) -> None:
    run, worker = new_run(store), register(store)
    commit(store, run, [step("one", options='{"timeout":0.01}')])
    claim = store.claim(run.id, "one", 1, worker, grace=0)
    assert claim is not None
    time.sleep(0.02)  # the length of its timeout
    [overdue] = store.overdue_steps()
    store.progress(claim, worker, progress=None, grace=60)
    again = store.database.rows(
        "retry_step", run=run.id, key="one", attempt=overdue.attempt, owner=overdue.owner, spared=0, wait=0, error=None,
        reason="", history=None, overdue=True, transaction=None,
    )  # fmt: skip
    assert not again
    assert settle(store, run, "one").accepted


def test_a_due_inline_call_is_run_by_the_reduction_that_it_wakes(store: Store) -> None:
    run = new_run(store)
    commit(store, run, [step("inline", state="running", options='{"inline":true}')])
    store.reclaim_steps()
    [due] = store.due_steps(300)
    assert store.wake(due.run)
    assert store.load(run.id).log.ready_inline == {"inline": 1}  # type: ignore[arg-type]


def test_a_blocked_call_that_runs_out_of_time_does_not_make_room_for_another(store: Store) -> None:
    run, worker = new_run(store), register(store)
    gather = step("gather", "gather", "waiting", due_in=None, options='{"count":3,"tolerant":true,"limit":1}')
    commit(store, run, [
        gather, step("a", group_key="gather"), step("b", state="blocked", group_key="gather", index=1, expires_in=0.0),
        step("c", state="blocked", group_key="gather", index=2),
    ])  # fmt: skip
    store.claim(run.id, "a", 1, worker, grace=2)
    [late] = store.expired_steps()
    failed = store.settle(run.id, "b", StepState.FAILED, origin=[StepState.BLOCKED], attempt=late.attempt, error="{}")
    assert (failed.accepted, failed.released) == (True, [])
    assert settle(store, run, "a").released == ["c"]


# Everything at once.


@pytest.mark.timeout(60)
def test_siblings_that_end_together_are_counted_once_each_and_wake_their_run_once(store: Store) -> None:
    run, worker, count = new_run(store), register(store), 40
    gather = step("gather", "gather", "waiting", due_in=None, options=f'{{"count":{count},"tolerant":true}}')
    keys = [f"call{i}" for i in range(count)]
    commit(store, run, [gather, *(step(key, group_key="gather", index=i) for i, key in enumerate(keys))])
    for key in keys:
        store.claim(run.id, key, 1, worker, grace=2)
    with ThreadPoolExecutor(8) as pool:
        settled = list(pool.map(lambda key: settle(store, run, key), keys * 3))
    assert sum(s.accepted for s in settled) == count
    assert sum(s.woken for s in settled) == 1
    assert query(store, "SELECT wake, state FROM pickaxe.run") == [(1, "ready")]
    assert query(store, "SELECT counted FROM pickaxe.step WHERE key = 'gather'") == [(count,)]
    assert query(store, "SELECT count(DISTINCT ordinal) FROM pickaxe.step") == [(count,)]


@pytest.mark.timeout(60)
def test_calls_that_end_while_their_gather_is_cancelled_end_one_way_or_the_other(
    store: Store, database: ForgetfulDatabase, capsys: pytest.CaptureFixture[str]
) -> None:
    """A settle locks its own row, the gather and the run; a commit the run and the rows it cancels."""
    worker = register(store)
    gather = step("gather", "gather", "waiting", due_in=None, options='{"count":4,"tolerant":true}')
    keys = [f"call{i}" for i in range(4)]
    outcomes: dict[str, int] = {"joined": 0, "cancelled": 0}
    for _ in range(25):
        run = new_run(store)
        commit(store, run, [gather, *(step(key, group_key="gather", index=i) for i, key in enumerate(keys))])
        for key in keys:
            store.claim(run.id, key, 1, worker, grace=2)
        store.send_signal(run.id, "stop", "1", None)
        loaded, start = store.load(run.id).row, threading.Barrier(5)

        def end(key: str, run: Any = run, start: threading.Barrier = start) -> Any:
            start.wait()
            return settle(store, run, key)

        def stop(loaded: Any = loaded, start: threading.Barrier = start) -> Any:
            start.wait()
            return commit(store, loaded, [], cancels=["gather", *keys])

        with ThreadPoolExecutor(5) as pool:
            ends = [pool.submit(end, key) for key in keys]
            stopped = pool.submit(stop).result()
            settled = [future.result() for future in ends]
        joined = any(s.seq is not None for s in settled)
        # The gather ended, and the commit came too late for it; or it was cancelled, and nothing ever joins.
        assert stopped.committed
        assert joined == stopped.moved
        outcomes["joined" if joined else "cancelled"] += 1
        state = "succeeded" if joined else "cancelled"
        of_it = query(store, "SELECT state FROM pickaxe.step WHERE run_id = %s AND key = 'gather'", run.id)
        assert of_it == [(state,)]
    with capsys.disabled():
        print(f"\n    {outcomes}", end="")
    assert database.deadlocks == 0, "they blocked each other until Postgres noticed"


@pytest.mark.timeout(60)
def test_a_tree_whose_runs_end_and_are_cancelled_at_the_same_time_ends_once(store: Store) -> None:
    for _ in range(15):
        parent = new_run(store)
        ids = [uuid.uuid5(parent.id, f"child{i}") for i in range(4)]
        gather = step("gather", "gather", "waiting", due_in=None, options='{"count":4,"tolerant":true,"limit":2}')
        children = [
            {"id": str(ids[i]), "agent": "agent", "version": "1", "held": i >= 2, "queue": "agents", "priority": None,
             "timeout": None, "input": "{}", "step": f"child{i}"} for i in range(4)
        ]  # fmt: skip
        rows = [
            step(f"child{i}", "child", "blocked" if i >= 2 else "waiting", group_key="gather", index=i, due_in=None,
                 options='{"policy":"cancel"}') for i in range(4)
        ]  # fmt: skip
        commit(store, parent, [gather, *rows], children=_values.dump(children))
        jobs: list[Callable[[], Any]] = [
            *(partial(cancel, store, child) for child in ids),
            *(partial(succeed, store, child) for child in ids),
            partial(cancel, store, parent.id, force=True),
        ]
        with ThreadPoolExecutor(9) as pool:
            done = [future.result() for future in [pool.submit(job) for job in jobs]]
        for orphan in done[-1].orphans:
            cancel(store, orphan)
        open_runs = "SELECT agent, state FROM pickaxe.run WHERE state NOT IN ('succeeded', 'cancelled')"
        assert query(store, open_runs) == []
        open_steps = "SELECT key, state FROM pickaxe.step WHERE state NOT IN ('succeeded', 'cancelled', 'failed')"
        assert query(store, open_steps) == []


def succeed(store: Store, run: uuid.UUID) -> Any:
    return commit(store, store.load(run).row, [], "succeeded", output="1")


def cancel(store: Store, run: uuid.UUID, *, force: bool = False) -> Any:
    return store.cancel_run(run, reason="", error="{}", timed_out=False, force=force)


UNDO = "UPDATE pickaxe.step SET state = 'ready', attempt = 0, owner = NULL WHERE run_id = %s RETURNING key"
"""What a crash of Postgres does to a claim that was not flushed."""


@tool
def a() -> int:
    return 1


@pytest.fixture
def engine(services: Any) -> Iterator[Engine]:
    app = Pickaxe("interleavings", tools=[a], settings=services.settings())
    for owner in (app.engine.owner, "another"):
        app.engine.store.register_worker(owner, name=owner, pid=1, handles=[])
    yield app.engine
    app.client.close()


def undo(engine: Engine, run: uuid.UUID) -> None:
    with engine.store.database.engine.connect() as connection:
        assert connection.exec_driver_sql(UNDO, (run,)).all() == [("a",)]


@pytest.mark.parametrize(("again", "accepted"), [("nobody", True), ("its beat", True), ("another", False)])
def test_the_outcome_of_a_call_whose_claim_was_lost_counts_unless_another_process_has_claimed_it_since(
    engine: Engine, again: str, accepted: bool
) -> None:
    store, refused = engine.store, engine.store.settle
    run = new_run(store)
    assert commit(store, run, [step("a")]).committed
    claimed = store.claim(run.id, "a", 1, engine.owner, grace=2)
    assert claimed is not None

    def first_refused(*args: Any, **more: Any) -> Settled:
        """The claim is lost before the outcome comes, and made again right after it was refused."""
        store.settle = refused  # type: ignore[method-assign]
        undo(engine, run.id)
        settled = refused(*args, **more)
        assert not settled.accepted
        if again != "nobody":
            owner = engine.owner if again == "its beat" else "another"
            assert store.claim(run.id, "a", 1, owner, grace=2) is not None
        return settled

    store.settle = first_refused  # type: ignore[method-assign]
    outcome = Outcome(claimed, engine.owner, StepState.SUCCEEDED, "1", None, claimed.clock())
    assert _attempts.settle(engine, outcome).accepted is accepted


def test_a_call_whose_claim_was_lost_is_not_begun_again_by_the_process_that_runs_it(engine: Engine) -> None:
    store = engine.store
    run = new_run(store)
    assert commit(store, run, [step("a")]).committed
    message = {"run": str(run.id), "step": "a", "attempt": 1}
    attempt = claim(engine, a.spec, message)
    assert attempt is not None
    undo(engine, run.id)
    assert claim(engine, a.spec, message) is None
    found = store.view_step(run.id, "a")
    assert found is not None
    assert (found.state, found.attempt) == ("running", 1), "it is claimed again, and goes on"


def test_a_failed_attempt_whose_claim_was_lost_counts_as_a_try(engine: Engine) -> None:
    store = engine.store
    run = new_run(store)
    assert commit(store, run, [step("a", options='{"attempts": 3}')]).committed
    attempt = claim(engine, a.spec, {"run": str(run.id), "step": "a", "attempt": 1})
    assert attempt is not None
    undo(engine, run.id)
    assert _attempts.raised(attempt, ValueError("no")) is None
    found = store.view_step(run.id, "a")
    assert found is not None
    assert (found.state, found.attempt, [past["ended"] for past in found.history]) == ("ready", 1, ["failed"])


def test_an_event_does_not_overtake_one_that_a_wait_is_about_to_find_when_it_looks_back(store: Store) -> None:
    run = new_run(store)
    store.publish_event("paid", "", '{"n": 1}')
    wait = step("paid", "event", "waiting", input='{"scope": "", "where": {}, "within": 60}')
    assert commit(store, run, [wait]).committed
    store.publish_event("paid", "", '{"n": 2}')
    assert store.look_back(run.id, "paid") == []
    [found] = store.load(run.id).log.steps  # type: ignore[union-attr]
    assert found.output == '{"n": 1}'


def test_the_time_of_a_child_run_that_its_gather_holds_back_begins_when_it_is_let_go(store: Store) -> None:
    run = new_run(store)
    gather = step("gather", "gather", "waiting", due_in=None, options='{"count":2,"tolerant":true,"limit":1}')
    calls = [
        step(
            key,
            "child",
            state,
            due_in=None,
            group_key="gather",
            index=index,
            options='{"timeout":60,"policy":"cancel"}',
        )
        for index, (key, state) in enumerate([("first", "waiting"), ("held", "blocked")])
    ]
    children = [
        {"id": str(uuid7()), "agent": "kid", "version": "1", "held": key == "held", "queue": "agents", "timeout": 60.0,
         "input": "{}", "step": key}
        for key in ("first", "held")
    ]  # fmt: skip
    assert commit(store, run, [gather, *calls], children=_values.dump(children)).committed
    deadlines = "SELECT parent_step, deadline > now() + interval '59 s' FROM pickaxe.run WHERE parent_run = %s"

    def left() -> dict[str, bool | None]:
        with store.database.engine.connect() as connection:
            return {row[0]: row[1] for row in connection.exec_driver_sql(deadlines, (run.id,))}

    assert left() == {"first": True, "held": None}
    settled = store.settle(run.id, "first", StepState.SUCCEEDED, origin=[StepState.WAITING], output="1")
    assert settled.released == ["held"]
    assert left() == {"first": True, "held": True}
