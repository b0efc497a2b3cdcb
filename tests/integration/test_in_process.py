"""Calls, sweeps and verdicts carried out by hand in this process: what becomes of the rows, whatever people wrote."""

from __future__ import annotations

import uuid

import pytest

from pickaxe import Pickaxe, agent, tool
from pickaxe.engine import _claims, _work
from pickaxe.engine._messages import tool_fault
from pickaxe.engine._resolution import Verdict, resolve
from pickaxe.engine._stint import Stint
from pickaxe.engine._sweeper import release_due
from pickaxe.errors import ResolveError, RunFailedError, StillUnknown

UNSTORABLE = "half a \ud800 and a \0"
ANSWERS: list[str] = []


def recall() -> str:
    if not ANSWERS:
        raise StillUnknown(UNSTORABLE)
    return ANSWERS[-1]


@tool(effect="at_most_once", reconcile=recall)
def pay() -> str:
    return "paid"


@tool(rate_limit="2/m", rate_key=lambda key, units: key, rate_units=lambda key, units: units)
def metered(key: str, units: int) -> str:
    return "metered"


@agent
async def pays() -> str:
    return await pay()


@agent
async def uses_up(key: str, units: int) -> str:
    return await metered(key, units)


@pytest.fixture
def app(services):
    ANSWERS.clear()
    settings = services.settings(continuation="plain", redispatch_after=0.01)
    app = Pickaxe("in-process", agents=[pays, uses_up], tools=[pay, metered], settings=settings)
    register(app, app.engine.owner)
    yield app
    app.client.close()


def register(app, owner):
    app.engine.store.register_worker(owner, name=owner, pid=1, handles=[])


def reduce(app, run):
    _work.reduce(app.engine, uuid.UUID(run.id))


def claim(app, handle, run, number=1):
    return _claims.claim(app.engine, handle.spec, {"run": run.id, "step": f"{handle.name}#1", "attempt": number})


def perform(attempt):
    _work.work_off([attempt], Stint(attempt.engine))


def die(app):
    """This process is found dead, and comes back under a new name."""
    execute(app, "UPDATE pickaxe.worker SET ended_at = clock_timestamp(), ended = 'died', exit = 'SIGKILL', held = 1")
    reclaimed = app.engine.store.reclaim_steps()
    app.engine.owner = uuid.uuid4().hex
    register(app, app.engine.owner)
    return reclaimed


def execute(app, text):
    with app.engine.store.database.engine.connect() as connection:
        return connection.exec_driver_sql(text)


def in_doubt(app):
    """A run whose call's process has died, so that its `reconcile` is due."""
    run = pays.enqueue()
    reduce(app, run)
    assert claim(app, pay, run) is not None
    [lost] = die(app)
    assert lost.state == "unknown"
    return run


def test_an_error_that_says_what_postgres_cannot_hold_keeps_nobody_from_judging_or_showing_its_step(app):
    run = in_doubt(app)
    perform(claim(app, pay, run, 2))
    assert claim(app, pay, run, 3) is not None
    [lost] = die(app)
    assert lost.state == "unknown"
    [step] = run.steps()
    assert step.history[1]["message"] == "half a \\ud800 and a \\0"
    assert [past.get("exit") for past in step.history] == ["SIGKILL", None, "SIGKILL"]
    resolve(app.engine, uuid.UUID(run.id), "pay#1", Verdict(failed="no", by=UNSTORABLE))
    [step] = run.steps()
    assert (step.state, step.history[-1]["by"]) == ("failed", "half a \\ud800 and a \\0")


def test_a_person_cannot_overrule_what_a_reconcile_has_found_or_revive_what_was_cancelled(app):
    answered, cancelled = in_doubt(app), in_doubt(app)
    ANSWERS.append("paid")
    perform(claim(app, pay, answered, 2))
    assert claim(app, pay, cancelled, 2) is not None
    cancelled.cancel(force=True)
    for run in (answered, cancelled):
        with pytest.raises(ResolveError, match="only a step whose outcome is unknown"):
            resolve(app.engine, uuid.UUID(run.id), "pay#1", Verdict(result="overruled"))
    reduce(app, answered)
    assert answered.result(timeout=10) == "paid"
    assert [step.state for step in cancelled.steps()] == ["cancelled"]


@pytest.mark.parametrize("units", [0, 3])
def test_a_call_of_more_units_than_its_limit_ever_grants_fails_and_is_in_nobodys_way(app, units):
    run, beside = uses_up.enqueue("key", units), uses_up.enqueue("key", 2)
    for each in (run, beside):
        reduce(app, each)
    with pytest.raises(RunFailedError, match=rf"'metered#1' uses {units} units of the rate limit 2/m on 'key'"):
        run.result(timeout=10)
    release_due(app.engine)
    perform(claim(app, metered, beside))
    reduce(app, beside)
    assert beside.result(timeout=10) == "metered"


@pytest.mark.parametrize("key", [UNSTORABLE, "long " * 2_000])
def test_a_limits_key_may_be_any_text(app, key):
    run = uses_up.enqueue(key, 1)
    reduce(app, run)
    [limits] = execute(app, "SELECT options::json->'limits' FROM pickaxe.step").one()
    assert tool_fault([], {"run": run.id, "step": "metered#1", "attempt": 1, "limits": limits}) is None
    perform(claim(app, metered, run))
    reduce(app, run)
    assert run.result(timeout=10) == "metered"


def test_a_message_to_another_tool_does_not_run_that_with_the_calls_arguments(app):
    run = pays.enqueue()
    reduce(app, run)
    message = {"run": run.id, "step": "pay#1", "attempt": 1}
    assert _claims.claim(app.engine, metered.spec, message) is None
    assert _claims.claim(app.engine, pay.spec, message) is not None
