"""Effect policies where they are declared, and in simulations."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg import AsyncConnection

from pickaxe import Context, Retry, agent, gather, inject, tool
from pickaxe._effects import Effect
from pickaxe.errors import (
    ConfigurationError,
    DidNotHappen,
    InputError,
    NonRetryableError,
    RetryLater,
    RunFailedError,
    StepError,
    StillUnknown,
)
from pickaxe.testing import SimulationError, dies, simulate, takes

HAPPENED: list[str] = []


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    HAPPENED.clear()


def look(order: str) -> str:
    if order not in HAPPENED:
        raise DidNotHappen("the bank knows nothing of it")
    return f"found {order}"


@tool(effect="at_most_once")
def pay(order: str) -> str:
    HAPPENED.append(order)
    return f"paid {order}"


@tool(effect=Effect.AT_MOST_ONCE, reconcile=look, timeout="20s")
def pay_checked(order: str, amount: int = 1, ctx: Context = inject()) -> str:
    HAPPENED.append(order)
    return f"paid {order} {ctx.idempotency_key[-2:]}"


@tool
def note(order: str) -> str:
    HAPPENED.append(order)
    return f"noted {order}"


@agent
async def pays(order: str) -> str:
    return await pay(order)


@agent
async def pays_checked(order: str) -> str:
    try:
        return await pay_checked(order)
    except StepError as error:
        return str(error)


@agent
async def notes(order: str) -> str:
    return await note(order)


@agent
async def pays_all(orders: list[str]) -> list[str]:
    return await gather(*(pay(order) for order in orders), limit=1)


def declare(body: Any = None, **options: Any) -> str:
    """The refusal of a tool with these options; "" for none."""

    def plain(order: str) -> str:
        return order

    try:
        tool(**options)(body or plain)
    except ConfigurationError as error:
        return str(error)
    return ""


def with_psycopg(order: str, connection: psycopg.Connection[Any] = inject()) -> str:
    return order


def with_async_connection(order: str, connection: AsyncConnection[Any] = inject()) -> str:
    return order


async def with_coroutine(order: str, connection: sqlalchemy.Connection = inject()) -> str:
    return order


@pytest.mark.parametrize(("options", "refusal"), [
    ({"effect": "once"}, "effect='once' is no effect policy; the choices are 'idempotent', 'at_most_once', 'transac"),
    ({"effect": None}, "effect=None is no effect policy"),
    ({"effect": "at_most_once", "retries": 3}, "name the exceptions that say so, such as retries=Retry\\(attempts=4"),
    ({"effect": "at_most_once", "retries": Retry(on=(OSError, Exception))}, "is at_most_once, so a retry needs"),
    ({"effect": "transactional"}, "is transactional and asks for no connection"),
    ({"reconcile": look}, "which only effect='at_most_once' asks"),
    ({"effect": "transactional", "reconcile": look, "body": with_psycopg}, "which only effect='at_most_once' asks"),
    ({"effect": "at_most_once", "reconcile": lambda amount: None}, "asks for 'amount', which the tool is not called"),
    ({"effect": "at_most_once", "reconcile": lambda *order: None}, "every input needs a name of its own"),
    ({"effect": "at_most_once", "reconcile": "look"}, "reconcile must be a function"),
    ({"effect": "at_most_once", "reconcile": with_psycopg}, "its reconcile asks for a connection"),
    ({"body": with_psycopg}, "needs @tool\\(effect='transactional'\\)"),
    ({"effect": "transactional", "body": with_async_connection}, "transactional tools are given blocking connections"),
    ({"effect": "transactional", "body": with_coroutine}, "must be a plain `def`"),
    ({"retrys": 3}, "@tool has no option 'retrys': did you mean 'retries'\\?"),
    ({"zzz": 3}, "@tool has no option 'zzz': it takes effect, inline, "),
])  # fmt: skip
def test_what_a_policy_cannot_keep_is_refused_where_the_tool_is_defined(options: Any, refusal: str) -> None:
    options = dict(options)
    with pytest.raises(AssertionError, match=refusal):
        raise AssertionError(declare(options.pop("body", None), **options))


@pytest.mark.parametrize("options", [
    {}, {"effect": "idempotent"}, {"effect": Effect.AT_MOST_ONCE, "reconcile": look},
    {"effect": "at_most_once", "retries": Retry(on=(ConnectionRefusedError,))},
    {"effect": "at_most_once", "retries": Retry(on=())}, {"effect": "transactional", "body": with_psycopg},
    {"effect": "at_most_once", "reconcile": lambda: None}, {"effect": "at_most_once", "reconcile": lambda order: None},
])  # fmt: skip
def test_what_it_can_keep_is_taken(options: Any) -> None:
    options = dict(options)
    assert declare(options.pop("body", None), **options) == ""


def test_an_agents_misspelt_option_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigurationError, match="@agent has no option 'time_out': did you mean 'timeout'"):
        agent(time_out=3)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=r"'pay' is none: write @tool\(name=…\)"):
        tool("pay")  # type: ignore[call-overload]


def test_retries_of_one_call_are_refused_where_the_tools_own_would_be() -> None:
    with pytest.raises(ConfigurationError, match="name the exceptions"):
        pay.using(retries=2)
    assert pay.using(retries=0)


def test_a_fork_and_a_rerun_have_keys_of_their_own_and_attempts_share_one() -> None:
    keys = []

    @tool(retries=Retry(attempts=3, backoff=0))
    def keyed(ctx: Context = inject()) -> None:
        keys.append(ctx.idempotency_key)
        if len(keys) < 3:
            raise RetryLater(after=0)

    @agent
    async def uses() -> None:
        await keyed()

    simulate(uses)
    assert len(keys) == 3
    assert len(set(keys)) == 1
    run, step = keys[0].split("/")
    assert step == "keyed#1"
    assert len(run) == 36


# In simulations.


def test_an_idempotent_tool_whose_worker_dies_runs_again() -> None:
    ran = simulate(notes, "o1", tools={note: dies()})
    assert ran.result() == "noted o1"
    assert (ran.step("note#1").attempt, HAPPENED) == (2, ["o1", "o1"])


def test_a_tool_that_kills_its_workers_is_quarantined_until_a_person_decides() -> None:
    with pytest.raises(
        SimulationError, match=r"which is quarantined \(it kills the worker processes.*resolve=\[\(0, 'no"
    ):
        simulate(notes, "o1", tools={note: dies(times=2)})
    ran = simulate(notes, "o1", tools={note: dies(times=2)}, resolve=[("1h", "note#1", {"again": True})])
    assert ran.result() == "noted o1"
    assert ran.step("note#1").attempt == 3
    with pytest.raises(RunFailedError, match="FailedByPerson: broken file"):
        simulate(notes, "o", tools={note: dies(times=2)}, resolve=[(0, "note#1", {"failed": "broken file"})]).result()


def test_an_at_most_once_tool_whose_worker_dies_waits_for_a_person() -> None:
    with pytest.raises(
        SimulationError, match=r"which is unknown \(the worker process that ran attempt 1 died: whether"
    ):
        simulate(pays, "o1", tools={pay: dies()})
    assert simulate(pays, "o1", tools={pay: dies()}, resolve=[("3d", "pay#1", {"result": "yes"})]).result() == "yes"
    HAPPENED.clear()
    assert simulate(pays, "o1", tools={pay: dies()}, resolve=[(0, "pay#1", {"again": True})]).result() == "paid o1"
    assert HAPPENED == ["o1", "o1"], "the person said so"


def test_a_reconcile_finds_what_has_happened_and_runs_again_what_has_not() -> None:
    assert simulate(pays_checked, "o1", tools={pay_checked: dies()}).result() == "found o1"
    assert HAPPENED == ["o1"]
    HAPPENED.clear()
    lost = dies(lambda order, amount: "never mind", reconcile=lambda order, amount: look(order))
    assert simulate(pays_checked, "o1", tools={pay_checked: lost}).result() == "never mind"


@pytest.mark.parametrize(("answers", "result", "after"), [
    ([ConnectionError("busy"), ConnectionError("busy"), "found"], "found", 3.0),
    ([StillUnknown(after=3600), "found"], "found", 3600.0),
    ([NonRetryableError("refused")], "tool 'pay_checked' failed: NonRetryableError: refused", 0.0),
])  # fmt: skip
def test_a_reconcile_is_asked_again_later_every_time(answers: list[Any], result: str, after: float) -> None:
    def reconcile(order: str, amount: int) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    ran = simulate(pays_checked, "o1", tools={pay_checked: dies(reconcile=reconcile)})
    assert ran.result() == result
    assert ran.now.timestamp() - 1704067200 == after


def test_an_at_most_once_tool_that_runs_out_of_time_is_reconciled_and_fails_if_it_did_not_happen() -> None:
    slow = takes("30s", lambda order, amount: "too late")
    ran = simulate(pays_checked, "o1", tools={pay_checked: slow})
    assert "ran out of time, and its effect did not happen" in ran.result()
    assert ran.step("pay_checked#1").state == "failed"


def test_a_call_that_is_set_aside_gives_its_place_in_a_gather_to_the_others() -> None:
    lost = dies(lambda order: HAPPENED.append(order) or "ok")
    resolve = [("1h", f"pay#{n}", {"again": True}) for n in (1, 2, 3)]
    ran = simulate(pays_all, ["a", "b", "c"], tools={pay: lost}, resolve=resolve)
    assert ran.result() == ["ok"] * 3
    assert HAPPENED[:3] == ["a", "b", "c"]


def test_a_transactional_tool_must_be_replaced_in_a_simulation() -> None:
    transfer = tool(effect="transactional", name="transfer")(with_psycopg)

    @agent
    async def transfers() -> str:
        return await transfer("o1")

    with pytest.raises(RunFailedError, match="works on a connection, which only a worker gives it"):
        simulate(transfers).result()
    assert simulate(transfers, tools={transfer: lambda order: order}).result() == "o1"


@pytest.mark.parametrize("verdict", [{}, {"result": 1, "again": True}])
def test_a_verdict_says_exactly_one_thing(verdict: Any) -> None:
    with pytest.raises(InputError, match="exactly one of"):
        simulate(pays, "o1", tools={pay: dies()}, resolve=[(0, "pay#1", verdict)])


def test_a_verdict_of_other_words_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="resolve= takes"):
        simulate(pays, "o1", tools={pay: dies()}, resolve=[(0, "pay#1", {"outcome": 1})])
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        dies(times=0)
