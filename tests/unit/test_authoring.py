"""Handles: what `@agent` and `@tool` accept, refuse, and do outside of a fleet."""

from __future__ import annotations

import asyncio
import enum
import math
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import pydantic
import pytest
from typing_extensions import TypedDict

from pickaxe import (
    Context,
    agent,
    continue_as,
    first,
    gather,
    inject,
    now,
    random,
    set_state,
    tool,
    uuid4,
    wait_for_event,
    wait_for_signal,
)
from pickaxe.errors import (
    ConfigurationError,
    InputError,
    OutputError,
    PayloadError,
    QuorumError,
    RunFailedError,
    UnboundHandleError,
)
from pickaxe.testing import simulate

if TYPE_CHECKING:
    from decimal import Decimal as Hidden


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Model(pydantic.BaseModel):
    name: str
    at: datetime
    tags: list[str] = []


@dataclass
class Data:
    identity: uuid.UUID
    colour: Colour
    nested: dict[str, list[Model]] = field(default_factory=dict)


class Typed(TypedDict, total=False):
    a: int
    b: str | None


class Pair(NamedTuple):
    left: int
    right: str


@tool
def search(query: str, limit: int = 5) -> list[str]:
    """Look it up."""
    return [query] * limit


@tool
async def fetch(url: str) -> str:
    return f"<{url}>"


@tool
def broken() -> None:
    raise ValueError("broken")


@agent
async def research(question: str) -> int:
    hits = await search(question, limit=2)
    pages = await gather(*(fetch(hit) for hit in hits))
    return len(pages)


class TestWrongArguments:
    """Refused at the call, with what was given and what is taken."""

    CALLS: ClassVar[dict[str, tuple[Callable[[], Any], str]]] = {
        "missing": (lambda: search(), r"the input of tool 'search' does not fit: query: Field required"),
        "unknown": (lambda: search("q", size=1), r"unexpected keyword argument 'size'\. It takes \(query: "),
        "too many": (lambda: search("q", 1, 2), "too many positional arguments"),
        "twice": (lambda: search("q", query="r"), "multiple values for argument 'query'"),
        "wrong type": (lambda: search("q", limit="many"), r"limit: Input should be a valid integer.* \(given 'many'\)"),
        "None": (lambda: search(None), r"query: Input should be a valid string \(given None\)"),
    }

    @pytest.mark.parametrize("name", CALLS)
    def test_in_an_agent(self, name: str) -> None:
        call, message = self.CALLS[name]

        async def main() -> None:
            await call()

        with pytest.raises(RunFailedError, match=f"InputError: .*{message}"):
            simulate(agent(main)).result()

    def test_at_enqueue_before_anything_is_started(self) -> None:
        with pytest.raises(InputError, match="the input of agent 'research' does not fit: question: Field required"):
            simulate(research)
        with pytest.raises(InputError, match="unexpected keyword argument 'topic'"):
            simulate(research, topic="x")

    def test_of_what_is_injected(self) -> None:
        @tool
        def told(ctx: Context = inject()) -> str:
            return ctx.step

        async def main() -> str:
            return await told(ctx=1)

        with pytest.raises(RunFailedError, match="'ctx' is filled in by the worker, leave it out"):
            simulate(agent(main)).result()

    def test_long_values_are_cut(self) -> None:
        async def main() -> None:
            await search(["x" * 1000])

        with pytest.raises(RunFailedError) as refused:
            simulate(agent(main)).result()
        assert len(str(refused.value)) < 500


class TestRefusedFunctions:
    def test_star_args(self) -> None:
        with pytest.raises(ConfigurationError, match=r"\*args: 'int'\": every input needs a name"):

            @tool
            def many(*args: int) -> None: ...

    def test_keyword_collections(self) -> None:
        with pytest.raises(ConfigurationError, match=r"\*\*options"):

            @tool
            def many(**options: int) -> None: ...

    def test_positional_only_parameters(self) -> None:
        with pytest.raises(ConfigurationError, match="positional-only"):

            @tool
            def one(a: int, /) -> None: ...

    def test_agents_that_are_not_async(self) -> None:
        with pytest.raises(ConfigurationError, match="agent 'plain' must be an `async def`"):

            @agent
            def plain() -> None: ...

    def test_agents_with_injected_parameters(self) -> None:
        with pytest.raises(ConfigurationError, match="agents are pure"):

            @agent
            async def told(ctx: Context = inject()) -> None: ...

    def test_agents_whose_parameter_is_an_option_of_enqueue(self) -> None:
        with pytest.raises(ConfigurationError, match="parameter 'delay', which is an option of enqueue"):

            @agent
            async def late(delay: int) -> None: ...

    def test_annotations_hidden_behind_type_checking(self) -> None:
        @tool
        def price(amount: Hidden) -> None: ...

        with pytest.raises(ConfigurationError, match=r"'Hidden' cannot be found.*importable at run time"):
            price.spec.signature.encode_input((1,), {}, cap=1000)

    @pytest.mark.parametrize("name", ["1st", "a b", "x" * 201, "é", "a/b", "a#1"])
    def test_names_that_celery_and_keys_could_not_take(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match="cannot be the name"):
            tool(name=name)(lambda: None)

    @pytest.mark.parametrize("priority", [-1, 10])
    def test_priorities_outside_of_0_to_9(self, priority: int) -> None:
        with pytest.raises(ConfigurationError, match="between 0 and 9"):
            tool(priority=priority)(search.fn)

    @pytest.mark.parametrize(
        "options", [{"timeout": -1}, {"timeout": "soon"}, {"retries": -1}, {"rate_limit": "often"}]
    )
    def test_options_that_mean_nothing(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError):
            tool(**options)(search.fn)

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"inline": True, "rate_limit": "1/s"}, "has a rate_limit and is inline"),
            ({"inline": True, "queue": "web"}, "has a queue and is inline"),
            ({"rate_key": "site"}, "has a rate_key and no rate_limit"),
            ({"rate_units": 2}, "has a rate_units and no rate_limit"),
        ],
    )
    def test_options_that_would_be_ignored(self, options: dict[str, Any], told: str) -> None:
        with pytest.raises(ConfigurationError, match=told):
            tool(**options)(search.fn)

    @pytest.mark.parametrize("queue", ["", " ", "web,api", " web"])
    def test_queues_that_no_worker_could_be_told(self, queue: str) -> None:
        with pytest.raises(ConfigurationError, match="cannot be the name of a queue"):
            tool(queue=queue)(search.fn)
        with pytest.raises(ConfigurationError, match="cannot be the name of a queue"):
            agent(queue=queue)(research.fn)


class TestOutside:
    """Outside of a fleet, a handle is the function."""

    def test_a_sync_tool_is_called(self) -> None:
        assert search("q", limit=1) == ["q"]

    def test_an_async_tool_is_awaited(self) -> None:
        assert asyncio.run(fetch("u")) == "<u>"

    def test_an_agent_runs_under_plain_asyncio_with_sync_tools(self) -> None:
        assert asyncio.run(research("q")) == 2

    def test_tools_are_given_a_context(self) -> None:
        @tool
        def told(ctx: Context = inject()) -> tuple[str, int, bool]:
            return ctx.tool, ctx.attempt, ctx.heartbeat()

        assert told() == ("told", 1, True)

    def test_factories_make_what_is_injected_once(self) -> None:
        made = []

        def make() -> object:
            made.append(1)
            return object()

        @tool
        def use(thing: object = inject(make)) -> int:
            return id(thing)

        assert use() == use()
        assert made == [1]

    def test_sync_tools_gather_under_asyncio(self) -> None:
        async def both() -> list[Any]:
            return await asyncio.gather(search("a", 1), asyncio.create_task(search("b", 1)))

        assert asyncio.run(both()) == [["a"], ["b"]]

    def test_gather_has_the_same_results(self) -> None:
        async def main() -> Any:
            return (
                await gather(fetch("a"), fetch("b"), limit=1),
                await gather(fetch("a"), fetch("b"), quorum=1),
                await first(fetch("a")),
                await fetch.map(["x", "y"]),
            )

        assert asyncio.run(main()) == (["<a>", "<b>"], ["<a>"], "<a>", ["<x>", "<y>"])

    def test_gather_says_how_a_list_of_calls_is_given_to_it(self) -> None:
        @agent
        async def gathers() -> list[str]:
            return await gather([fetch("a"), fetch("b")])  # type: ignore[list-item]

        with (
            warnings.catch_warnings(action="ignore"),
            pytest.raises(RunFailedError, match=r"not list: spread them, gather\(\*calls\)"),
        ):
            simulate(gathers).result()

    def test_gather_reports_a_quorum_out_of_reach(self) -> None:
        async def fails() -> None:
            raise ValueError("no")

        async def main() -> None:
            await gather(fails(), fetch("a"), quorum=2)

        with pytest.raises(QuorumError):
            asyncio.run(main())

    def test_first_of_nothing_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="of 0 calls can never be reached"):
            asyncio.run(first())

    def test_time_and_chance_are_real(self) -> None:
        before, told, after = datetime.now(UTC), now(), datetime.now(UTC)
        assert before <= told <= after
        assert uuid4() != uuid4()
        assert random().random() != random().random()

    def test_setting_the_state_changes_nothing_but_is_checked(self) -> None:
        set_state({"a": 1})
        with pytest.raises(PayloadError):
            set_state(object())

    @pytest.mark.parametrize(
        "use", [lambda: wait_for_signal("x"), lambda: wait_for_event("x"), lambda: _continue()],
    )  # fmt: skip
    def test_waits_say_how_to_test_them(self, use: Callable[[], Any]) -> None:
        with pytest.raises(ConfigurationError, match=r"pickaxe\.testing\.simulate"):
            asyncio.run(use())

    def test_a_handle_without_an_app_says_what_is_missing(self) -> None:
        with pytest.raises(UnboundHandleError, match="agent 'research' belongs to no Pickaxe app"):
            research.enqueue("q")

    def test_handles_look_like_their_functions(self) -> None:
        assert (search.__name__, search.__doc__, search.name) == ("search", "Look it up.", "search")
        assert search.fn("q", 1) == ["q"]
        assert repr(search) == "<tool 'search'>"

    def test_unannotated_functions_take_anything_json_can_hold(self) -> None:
        @tool
        def loose(value, other=None):  # type: ignore[no-untyped-def]
            return [value, other]

        async def main() -> Any:
            return await loose({"a": [1]})

        assert simulate(agent(main)).result() == [{"a": [1]}, None]


async def _continue() -> None:
    continue_as()


MOMENT = datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=UTC)
VALUES: dict[str, tuple[Any, Any]] = {
    "text": (str, "plain"),
    "NUL": (str, "a\0b"),
    "lone surrogate": (str, "a\ud800b"),
    "lone surrogates in a list": (list[str], ["\udfff", "\ud800"]),
    "emoji": (str, "🪓 é"),
    "large integer": (int, 2**80),
    "float": (float, 0.1 + 0.2),
    "decimal": (Decimal, Decimal("1.10")),
    "bytes of text": (bytes, b"abc"),
    "datetime": (datetime, MOMENT),
    "date": (date, date(2024, 2, 29)),
    "timedelta": (timedelta, timedelta(days=3, microseconds=1)),
    "uuid": (uuid.UUID, uuid.UUID(int=7)),
    "enum": (Colour, Colour.BLUE),
    "path": (Path, Path("a/b")),
    "none": (str | None, None),
    "optional": (str | None, "x"),
    "union of text": (int | str, "12"),
    "union of number": (int | str, 12),
    "union of models": (Model | Data, Model(name="n", at=MOMENT)),
    "literal": (Literal["a", 1], 1),
    "tuple": (tuple[int, str], (1, "a")),
    "set": (set[int], {1, 2}),
    "named tuple": (Pair, Pair(1, "a")),
    "typed dict": (Typed, {"a": 1}),
    "model": (Model, Model(name="n", at=MOMENT, tags=["t"])),
    "dataclass": (Data, Data(uuid.UUID(int=1), Colour.RED, {"k": [Model(name="n", at=MOMENT)]})),
    "mapping with numbers as keys": (dict[int, str], {1: "a"}),
    "annotated": (Annotated[int, pydantic.Field(gt=1)], 2),
    "anything": (Any, {"a": [1, None, True, "x"]}),
    "nothing": (None, None),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back_as_they_were(name: str) -> None:
    annotation, value = VALUES[name]

    def body(value: Any) -> Any:
        return value

    body.__annotations__ = {"value": annotation, "return": annotation}
    echo = tool(body)

    async def main() -> bool:
        back = await echo(value)
        return type(back) is type(value) and back == value

    assert simulate(agent(main), crash="everywhere").result()


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "NaN": (float, math.nan, "cannot be stored as JSON"),
    "infinity": (Any, math.inf, "cannot be stored as JSON"),
    "bytes that are not text": (bytes, b"\xff", "cannot be stored as JSON"),
    "an object": (Any, object(), "cannot be stored as JSON"),
    "a function": (Any, len, "cannot be stored as JSON"),
    "too much": (str, "x" * 2_000_000, r"2,000,002 bytes of JSON; the cap is 1,048,576"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_be_kept_are_refused(name: str) -> None:
    annotation, value, message = REFUSED[name]

    def body() -> Any:
        return value

    body.__annotations__ = {"return": annotation}
    give = tool(retries=5)(body)

    async def main() -> None:
        await give()

    ran = simulate(agent(main))
    with pytest.raises(RunFailedError, match=f"PayloadError: the result of tool 'body'.*{message}"):
        ran.result()
    assert ran.step("body#1").attempt == 1


def test_a_result_that_breaks_its_promise_is_refused_and_not_retried() -> None:
    @tool(retries=5)
    def count() -> int:
        return "many"  # type: ignore[return-value]

    async def main() -> None:
        await count()

    ran = simulate(agent(main))
    with pytest.raises(RunFailedError, match=r"OutputError: the result of tool 'count' \(a str; it promises int\)"):
        ran.result()
    assert ran.step("count#1").attempt == 1


def test_an_agents_own_result_is_checked_too() -> None:
    @agent
    async def count() -> int:
        return "many"  # type: ignore[return-value]

    with pytest.raises(RunFailedError, match="OutputError: the result of agent 'count'"):
        simulate(count).result()


def test_extra_inputs_in_an_old_log_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="size: Extra inputs are not permitted"):
        search.spec.signature.decode_input('{"query":"q","size":1}')


def test_a_recorded_result_that_no_longer_fits_is_refused() -> None:
    with pytest.raises(OutputError, match="the recorded result of tool 'search'"):
        search.spec.signature.decode_output("7")


def test_options_of_one_call_do_not_change_the_handle() -> None:
    other = search.using(key="k", queue="q", priority=9, timeout="5s", retries=0)
    assert other._options != search._options
    assert other.spec is search.spec

    async def main() -> None:
        await other("x")

    step = simulate(agent(main)).step("k")
    assert (step.options["timeout"], step.options["attempts"]) == (5.0, 1)


@pytest.mark.parametrize("priority", range(10))
def test_priorities_from_0_to_9_are_kept(priority: int) -> None:
    assert tool(priority=priority)(search.fn).spec.priority == priority


def test_an_unknown_policy_for_children_is_refused() -> None:
    with pytest.raises(ValueError, match="'ignore' is not a valid ChildPolicy"):
        research.using(on_cancel="ignore")


def test_a_type_that_cannot_be_used_is_refused_when_the_app_is_built():
    from pickaxe import Pickaxe, Settings, errors

    class Strange:
        pass

    @tool
    def strange(value) -> None: ...

    strange.spec.function.__annotations__["value"] = Strange

    with pytest.raises(errors.ConfigurationError, match="tool 'strange': an input or output type cannot be used"):
        Pickaxe("x", tools=[strange], settings=Settings(_env_file=None))
