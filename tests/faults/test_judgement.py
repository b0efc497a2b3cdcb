"""Who is to blame for a death, and what becomes of a step that was set aside: the statements themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from pickaxe import _values
from pickaxe._states import StepState
from pickaxe._uuids import uuid7
from pickaxe.store import Database, NewRun, Store
from tests.faults.fleet import eventually

pytestmark = pytest.mark.usefixtures("watched")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    database = Database(database_url)
    yield Store(database, redispatch=5)
    database.close()


ONCE = '{"effect":"at_most_once"}'
ASKED = '{"effect":"at_most_once","reconcile":true}'


class Case:
    """A run with these calls, and workers that come and go."""

    def __init__(self, store: Store, *keys: str, options: str = "{}", limit: int | None = None) -> None:
        self.store = store
        run = NewRun(uuid7(), "agent", "1", "agents", 5, "{}", due_in=5)
        store.enqueue([run])
        self.run = run.id
        rows = [row(key, options=options, due_in=5.0) for key in keys]
        if limit is not None:
            joined = _values.dump({"count": len(keys), "tolerant": True, "limit": limit})
            rows = [
                row("gather", "gather", "waiting", options=joined),
                *(
                    row(key, state="ready" if i < limit else "blocked", options=options, group_key="gather", index=i)
                    for i, key in enumerate(keys)
                ),
            ]
        loaded = store.load(run.id).row
        assert loaded is not None
        values: dict[str, Any] = {
            "state": "waiting", "new_head": 0, "output": None, "error": None, "reason": None, "published": None,
            "started": loaded.now, "owner": "", "steps": _values.dump(rows), "children": None, "cancels": [],
            "settled": [], "carried": [],
        }  # fmt: skip
        assert store.commit(loaded, **values).committed

    def worker(self, name: str, family: str = "") -> str:
        self.store.register_worker(name, name=name, pid=1, handles=[], family=family or name)
        return name

    def claim(self, worker: str, *keys: str) -> list[bool]:
        """Whether each could be claimed, at whatever attempt it is."""
        found = [(key, self.step(key)) for key in keys]
        return [self.store.claim(self.run, key, s.attempt + 1, worker, grace=2) is not None for key, s in found]

    def dies(self, *workers: str, how: str | None = None, limit: int = 2) -> dict[str, tuple[str, float]]:
        """They are found dead together; the states and strikes of the steps they ran."""
        for worker in workers:
            self.query(
                "UPDATE pickaxe.worker w SET ended_at = clock_timestamp(), ended = 'died', exit = %s, "
                "held = (SELECT count(*) FROM pickaxe.step s WHERE s.owner = w.id), suspects = "
                "(SELECT count(*) FROM pickaxe.step s WHERE s.owner = w.id AND strikes >= 1) WHERE id = %s RETURNING 1",
                how, worker,
            )  # fmt: skip
        return {row.key: (row.state, row.strikes) for row in self.store.reclaim_steps(limit=limit, together=1.5)}

    def step(self, key: str) -> Any:
        found = self.store.view_step(self.run, key)
        assert found is not None
        return found

    def states(self) -> dict[str, str]:
        return {s.key: str(s.state) for s in self.store.view_steps(self.run) if s.kind == "tool"}

    def query(self, text: str, *parameters: Any) -> list[Any]:
        with self.store.database.engine.connect() as connection:
            return list(connection.exec_driver_sql(text, parameters).all())

    def settle(self, key: str, worker: str) -> Any:
        guard = {"attempt": self.step(key).attempt, "owner": worker}
        return self.store.settle(self.run, key, StepState.SUCCEEDED, origin=[StepState.RUNNING], output="1", **guard)


def row(key: str, kind: str = "tool", state: str = "ready", **more: Any) -> dict[str, Any]:
    known = {"key": key, "kind": kind, "name": key, "digest": "", "state": state, "queue": "tools"}
    return known | {"index": 0, "input": "{}", "options": "{}"} | more


def test_a_step_that_was_alone_in_two_processes_that_died_is_quarantined(store: Store) -> None:
    case = Case(store, "a")
    case.claim(case.worker("one"), "a")
    assert case.dies("one") == {"a": ("ready", 1.0)}
    case.claim(case.worker("two"), "a")
    assert case.dies("two", how="SIGKILL") == {"a": ("quarantined", 2.0)}
    step = case.step("a")
    assert [past["exit"] for past in step.history] == [None, "SIGKILL"]
    assert step.due is None
    assert case.claim(case.worker("three"), "a") == [False]


@pytest.mark.parametrize(("limit", "states"), [
    (0, ["ready"] * 5), (1, ["quarantined"]), (3, ["ready", "ready", "quarantined"]),
])  # fmt: skip
def test_the_number_of_deaths_is_a_setting(store: Store, limit: int, states: list[str]) -> None:
    case = Case(store, "a")
    for number, state in enumerate(states):
        worker = case.worker(f"worker{number}")
        assert case.claim(worker, "a") == [True]
        assert case.dies(worker, limit=limit)["a"][0] == state


def test_a_process_that_ends_in_good_order_charges_nobody(store: Store) -> None:
    case = Case(store, "a")
    for number in range(4):
        worker = case.worker(f"worker{number}")
        case.claim(worker, "a")
        store.end_worker(worker, "stopped")
        [step] = store.reclaim_steps()
        assert (step.state, step.strikes) == ("ready", 0.0)


def test_a_clean_failure_between_two_deaths_starts_the_count_again(store: Store) -> None:
    case = Case(store, "a")
    case.claim(case.worker("one"), "a")
    case.dies("one")
    claim = store.claim(case.run, "a", 2, case.worker("two"), grace=2)
    assert claim is not None
    values: dict[str, Any] = {"wait": 0, "error": None, "reason": "", "history": claim.history}
    store.retry_step(claim, "two", spared=1, **values)
    assert case.step("a").strikes == 1, "giving a call back says nothing about it"
    claim = store.claim(case.run, "a", 3, "two", grace=2)
    assert claim is not None
    store.retry_step(claim, "two", spared=0, **values)
    assert case.step("a").strikes == 0
    case.claim(case.worker("three"), "a")
    assert case.dies("three") == {"a": ("ready", 1.0)}


def test_steps_that_die_together_are_suspects_and_only_the_one_that_kills_again_is_quarantined(store: Store) -> None:
    keys = ("bad", "b", "c", "d")
    case = Case(store, *keys)
    case.claim(case.worker("one"), *keys)
    assert case.dies("one") == dict.fromkeys(keys, ("ready", 0.5))
    assert case.claim(case.worker("two"), *keys) == [True] * 4, "once may be chance: nobody is held up"
    assert case.dies("two") == dict.fromkeys(keys, ("ready", 1.0))
    # From now on, one of them at a time.
    assert case.claim(case.worker("three"), "b", "bad", "c") == [True, False, False]
    assert store.defer_suspect(case.run, "bad", 2)
    assert not store.defer_suspect(case.run, "b", 2)
    assert case.settle("b", "three").accepted
    assert case.claim("three", "bad", "c") == [True, False]
    assert case.claim(case.worker("four"), "c") == [True]
    assert case.dies("three") == {"bad": ("quarantined", 2.0)}
    assert case.settle("c", "four").accepted
    assert case.claim("four", "d") == [True]
    assert case.settle("d", "four").accepted


def test_a_suspect_among_steps_that_are_none_is_the_one_to_blame(store: Store) -> None:
    case = Case(store, "bad", "b", "c")
    for number, beside in enumerate(("b", "c")):
        worker = case.worker(f"worker{number}")
        case.claim(worker, "bad", beside)
        case.dies(worker)
    assert case.step("bad").strikes == 1
    case.claim(case.worker("last"), "bad", "b", "c")
    assert case.dies("last") == {"bad": ("quarantined", 2.0), "b": ("ready", 1.0), "c": ("ready", 1.0)}


def test_a_host_that_is_lost_with_all_processes_of_a_worker_makes_suspects_of_their_steps_and_no_more(
    store: Store,
) -> None:
    case = Case(store, "a", "b", "c")
    for number in range(5):
        workers = [case.worker(f"{number}-{i}", family=f"host{number}") for i in range(3)]
        claimed = [case.claim(worker, key)[0] for worker, key in zip(workers, "abc", strict=True)]
        # Once they are suspects, a worker runs one at a time, in whichever of its processes.
        assert claimed == ([True] * 3 if number < 2 else [True, False, False])
        found = case.dies(*workers)
        if number == 2:
            assert found == {"a": ("quarantined", 2.0)}
            break
    assert case.states() == {"a": "quarantined", "b": "ready", "c": "ready"}


def test_a_child_process_that_dies_by_itself_is_told_from_its_siblings(store: Store) -> None:
    case = Case(store, "bad", "b")
    for number in range(2):
        first, second = (case.worker(f"{number}-{i}", family="worker") for i in range(2))
        case.claim(first, "bad")
        if number == 0:
            case.claim(second, "b")
        found = case.dies(first, how="SIGSEGV")
        assert found["bad"] == (["ready", "quarantined"][number], number + 1.0)
    assert case.states()["b"] == "running"


def test_a_step_that_kills_two_processes_of_a_worker_within_a_moment_is_not_taken_for_its_own_company(
    store: Store,
) -> None:
    case = Case(store, "bad")
    case.claim(case.worker("0", family="worker"), "bad")
    assert case.dies("0", how="SIGKILL") == {"bad": ("ready", 1.0)}
    case.claim(case.worker("1", family="worker"), "bad")
    assert case.dies("1", how="SIGKILL") == {"bad": ("quarantined", 2.0)}


def test_a_parent_tells_of_its_childs_end_once_and_not_if_the_child_has_signed_off(store: Store) -> None:
    case = Case(store, "a")
    case.claim(case.worker("child", family="worker"), "a")
    assert not store.process_exited("worker", 2, "SIGKILL")
    assert not store.process_exited("another", 1, "SIGKILL")
    assert store.process_exited("worker", 1, "SIGKILL")
    assert not store.process_exited("worker", 1, "SIGKILL")
    assert [(s.key, s.exit) for s in store.reclaim_steps()] == [("a", "SIGKILL")]
    case.worker("orderly", family="worker")
    store.end_worker("orderly", "stopped")
    assert not store.process_exited("worker", 1, "exit status 0")


def test_a_reason_that_comes_after_the_silence_is_added_to_the_evidence(store: Store) -> None:
    case = Case(store, "a")
    case.claim(case.worker("child", family="worker"), "a")
    case.dies("child")
    assert case.step("a").history[0]["exit"] is None
    assert store.process_exited("worker", 1, "SIGBUS")
    assert case.step("a").history[0]["exit"] == "SIGBUS"


# Outcomes nobody knows.


@pytest.mark.parametrize(("options", "due"), [(ONCE, False), (ASKED, True)])
def test_a_call_that_may_only_run_once_is_unknown_when_its_process_dies(store: Store, options: str, due: bool) -> None:
    case = Case(store, "a", options=options)
    case.claim(case.worker("one"), "a")
    assert case.dies("one") == {"a": ("unknown", 1.0)}
    assert (case.step("a").due is not None) is due
    assert bool(store.due_steps(300)) is due
    assert case.claim(case.worker("two"), "a") == [due], "what is claimed is the question"
    assert case.step("a").reconciling is due


def test_a_question_is_owned_fenced_and_costs_no_try(store: Store) -> None:
    case = Case(store, "a", options=ASKED)
    case.claim(case.worker("one"), "a")
    case.dies("one")
    claim = store.claim(case.run, "a", 2, case.worker("two"), grace=2)
    assert claim is not None
    assert claim.reconciling
    assert claim.attempt - claim.deaths == 0
    assert store.claim(case.run, "a", 2, case.worker("rival"), grace=2) is None
    assert store.claim(case.run, "a", 3, "rival", grace=2) is None
    assert not case.settle("a", "one").accepted, "the one that was thought dead"
    refused = store.reissue(case.run, "a", attempt=2, owner="rival", reason="")
    assert refused is None
    assert store.reissue(case.run, "a", attempt=2, owner="two", reason="") == "ready"
    again = store.claim(case.run, "a", 3, "two", grace=2)
    assert again is not None
    assert not again.reconciling
    assert again.attempt - again.deaths == 1


def test_a_question_whose_process_dies_is_asked_again_and_at_the_second_such_death_a_person_is(store: Store) -> None:
    case = Case(store, "a", options=ASKED)
    case.claim(case.worker("body"), "a")
    case.dies("body")
    for number, due in ((1, True), (2, False)):
        worker = case.worker(f"asks{number}")
        assert case.claim(worker, "a") == [True]
        assert case.dies(worker)["a"][0] == "unknown"
        assert (case.step("a").due is not None) is due
    assert "its reconcile kills" in case.step("a").reason
    assert store.reissue(case.run, "a", attempt=3, reason="") == "ready"
    assert case.step("a").strikes == 0


def test_a_call_that_did_not_happen_but_kills_its_workers_is_quarantined(store: Store) -> None:
    case = Case(store, "a", options=ASKED)
    for number in (1, 2):
        case.claim(case.worker(f"body{number}"), "a")
        assert case.dies(f"body{number}") == {"a": ("unknown", float(number))}
        case.claim(case.worker(f"asks{number}"), "a")
        state = store.reissue(case.run, "a", attempt=2 * number, owner=f"asks{number}", reason="", limit=2)
        assert state == ["ready", "quarantined"][number - 1]


def test_a_stray_question_is_asked_again_and_never_taken_for_the_call(store: Store) -> None:
    case = Case(store, "a", options=ASKED)
    case.claim(case.worker("one"), "a")
    case.dies("one")
    case.claim(case.worker("two"), "a")
    [token] = store.beat("two") or []
    assert store.give_back(token, "two")
    assert (case.step("a").state, case.step("a").reconciling) == ("unknown", False)


def test_no_timeout_fails_a_call_whose_outcome_is_unknown(store: Store) -> None:
    case = Case(store, "a", options=ONCE)
    case.query("UPDATE pickaxe.step SET total_timeout = 0 WHERE key = 'a' RETURNING 1")
    case.claim(case.worker("one"), "a")
    [late] = store.expired_steps()
    done = store.set_step_aside(
        case.run, "a", StepState.UNKNOWN, attempt=late.attempt, owner=late.owner, reason="", overdue=True
    )
    assert done.accepted
    assert store.expired_steps() == []
    assert not store.overdue_runs()


# A person's word.


def test_a_person_ends_a_step_once_and_only_as_it_was_seen(store: Store) -> None:
    case = Case(store, "a", options=ONCE)
    case.claim(case.worker("one"), "a")
    case.dies("one")
    seen = case.step("a")
    entry = {"ended": "resolved", "how": "result", "at": 0, "by": "Ada"}

    def resolve(attempt: int) -> Any:
        return store.resolve(
            case.run, "a", StepState.SUCCEEDED, origin=seen.state, attempt=attempt, output="1", entry=entry
        )

    assert not resolve(seen.attempt + 1).accepted
    done = resolve(seen.attempt)
    assert (done.accepted, done.woken) == (True, True)
    assert not resolve(seen.attempt).accepted
    assert case.step("a").history[-1] == entry
    assert case.step("a").state == "succeeded"


def test_a_step_that_is_set_aside_passes_its_place_on_once_and_waits_for_one_when_it_comes_back(store: Store) -> None:
    case = Case(store, "a", "b", "c", "d", options=ONCE, limit=2)
    case.claim(case.worker("one"), "a")
    case.claim(case.worker("two"), "b")
    rows = {row.key: row for row in (case.dies("one"), store.reclaim_steps())[1]}
    assert rows == {}
    assert case.states() == {"a": "unknown", "b": "running", "c": "ready", "d": "blocked"}
    # Both places are taken.
    assert store.reissue(case.run, "a", attempt=1, reason="") == "blocked"
    assert case.states() == {"a": "blocked", "b": "running", "c": "ready", "d": "blocked"}
    # Its turn is before d's.
    assert case.settle("b", "two").released == ["a"]
    case.claim("two", "c")
    assert case.settle("c", "two").released == ["d"]
    assert case.states() == {"a": "ready", "b": "succeeded", "c": "succeeded", "d": "ready"}


def test_a_step_that_ends_while_it_is_set_aside_lets_nobody_in(store: Store) -> None:
    case = Case(store, "a", "b", "c", options=ONCE, limit=1)
    case.claim(case.worker("one"), "a")
    case.dies("one")
    assert case.states() == {"a": "unknown", "b": "ready", "c": "blocked"}
    done = store.resolve(case.run, "a", StepState.FAILED, origin=StepState.UNKNOWN, attempt=1, error="{}", entry={})
    assert (done.accepted, done.released) == (True, [])
    assert case.states() == {"a": "failed", "b": "ready", "c": "blocked"}


def test_cancelling_a_run_ends_what_was_set_aside(store: Store) -> None:
    case = Case(store, "a", options=ONCE)
    case.claim(case.worker("one"), "a")
    case.dies("one")
    store.cancel_run(case.run, reason="", error="{}", timed_out=False, force=True)
    assert case.states() == {"a": "cancelled"}
    assert store.list_aside() == []


# Reductions.


def suspect(case: Case, owner: str, *, limit: int = 2, patience: float = 60) -> Any:
    loaded = case.store.load(case.run).row
    assert loaded is not None
    return case.store.suspect_reduction(
        case.run, loaded.epoch, owner, limit=limit, patience=patience, reason="it kills its workers"
    )


def test_a_reduction_in_which_two_processes_died_is_paused_with_the_evidence(store: Store) -> None:
    case = Case(store, "a")
    store.wake(case.run)
    for name in ("one", "two"):
        assert suspect(case, case.worker(name)).verdict == "go"
        case.dies(name, how="SIGKILL")
    found = suspect(case, case.worker("three"))
    assert found.verdict == "paused"
    assert [death["exit"] for death in found.deaths] == ["SIGKILL", "SIGKILL"]
    view = store.view_run(case.run)
    assert view is not None
    assert (view.state, view.reason) == ("paused", "it kills its workers")
    assert view.error is not None
    assert [death["owner"] for death in view.error["deaths"]] == ["one 1", "two 1"]
    # A person lets it go on, and the count begins anew.
    assert store.resume_run(case.run, "1")
    assert suspect(case, "three").verdict == "go"


def test_a_reduction_that_another_living_process_has_begun_is_waited_for(store: Store) -> None:
    case = Case(store, "a")
    store.wake(case.run)
    assert suspect(case, case.worker("one")).verdict == "go"
    assert suspect(case, "one").verdict == "go", "its own threads do not wait for each other"
    assert suspect(case, case.worker("two"), patience=0).verdict == "go"
    store.clear_reduction(case.run, "two")
    assert suspect(case, "two").verdict == "wait"
    assert store.load(case.run).row.dispatches == 0  # type: ignore[union-attr]
    store.clear_reduction(case.run, "one")
    assert suspect(case, "two").verdict == "go"


def test_a_reduction_that_was_committed_before_its_process_died_counts_for_nothing(store: Store) -> None:
    case = Case(store, "a")
    store.wake(case.run)
    for name in ("one", "two"):
        assert suspect(case, case.worker(name)).verdict == "go"
        case.query("UPDATE pickaxe.run SET epoch = epoch + 1 RETURNING 1")
        case.dies(name)
    assert suspect(case, case.worker("three")).verdict == "go"
    assert case.query("SELECT owner FROM pickaxe.suspect") == [("three",)]


def test_a_step_beside_a_reduction_under_suspicion_is_not_charged_in_full(store: Store) -> None:
    case = Case(store, "a")
    store.wake(case.run)
    for number, strikes in enumerate((0.5, 1.0, 1.0)):
        worker = case.worker(f"worker{number}")
        case.claim(worker, "a")
        suspect(case, worker, limit=0)
        assert case.dies(worker) == {"a": ("ready", strikes)}


def test_a_process_that_is_declared_dead_loses_its_open_transactions_though_none_of_its_calls_is_left(
    store: Store,
) -> None:
    case = Case(store)
    with store.tool_transaction(f"pickaxe {case.worker('frozen')} 1") as frozen:
        with store.tool_transaction(f"pickaxe {case.worker('alive')} 1") as alive:
            case.query("UPDATE pickaxe.worker SET beat_at = now() - interval '1 hour' WHERE id = 'frozen' RETURNING 1")
            case.query("UPDATE pickaxe.worker SET beat_at = now() + interval '1 hour' WHERE id = 'alive' RETURNING 1")
            # Nobody is buried in the first seconds of a Postgres.
            dead = eventually(lambda: store.bury_workers(dead=2, vanished=10), "somebody is buried")
            assert [worker.id for worker in dead] == ["frozen"]
            alive.commit()
        with pytest.raises(psycopg.errors.AdminShutdown):
            frozen.commit()


def test_a_question_that_must_wait_for_a_rate_limit_is_asked_at_its_slot(store: Store) -> None:
    case = Case(store, "asked", options=ASKED)
    case.claim(case.worker("one"), "asked")
    case.dies("one")
    reason = case.step("asked").reason
    slot = {"run": str(case.run), "attempt": 1, "wait": 3600.0, "granted": True, "reason": "waits for its rate limit"}
    store.defer_steps([{"key": "asked", **slot}])
    later = "SELECT key, granted, reason FROM pickaxe.step WHERE due > now() + interval '30 minutes'"
    assert case.query(later) == [("asked", True, reason)]
    person = Case(store, "once", options=ONCE)
    person.claim(person.worker("two"), "once")
    person.dies("two")
    store.defer_steps([{"key": "once", **slot, "run": str(person.run)}])
    assert person.step("once").due is None, "a person is to answer, and nobody asks a tool"


# What nobody looks at any more.


def test_what_is_old_is_deleted_and_what_still_matters_is_kept(store: Store) -> None:
    case = Case(store, "a")
    case.claim(case.worker("holds"), "a")
    for name in ("old", "new", "alive"):
        case.worker(name)
    age = "UPDATE pickaxe.worker SET ended_at = now() - interval '{}', ended = 'died' WHERE id = %s RETURNING 1"
    for name, interval in (("holds", "2 days"), ("old", "2 days"), ("new", "1 hour")):
        case.query(age.format(interval), name)
    assert store.purge("workers", 86400) == 1
    assert {name for (name,) in case.query("SELECT id FROM pickaxe.worker")} == {"holds", "new", "alive"}
    store.publish_event("key", "", "1")
    store.set_aside(reason="", body="", headers="{}")
    assert (store.purge("events", 86400), store.purge("dead_letters", 86400)) == (0, 0)
    assert (store.purge("events", 0), store.purge("dead_letters", 0)) == (1, 1)
    store.wake(case.run)
    suspect(case, "alive")
    assert store.purge("suspects", 0) == 0, "it is still at it"
    case.query("UPDATE pickaxe.run SET epoch = epoch + 1 RETURNING 1")
    assert store.purge("suspects", 0) == 1


def test_whom_the_sweeper_held_dead_before_an_outage_it_does_not_bury_after_it(store: Store, database_url: str) -> None:
    options = "options=-c%20default_transaction_read_only%3Don"
    database = Database(f"{database_url}{'&' if '?' in database_url else '?'}{options}")
    try:
        with pytest.raises(DBAPIError, match="read-only transaction"):
            # Anything else would be tried again until it can be written; by then, whoever lives has beaten again.
            Store(database).bury_workers(dead=2, vanished=10)
    finally:
        database.close()
