"""Where an exception was raised, as people want to be told: the line of their own code."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from pickaxe import agent
from pickaxe._places import raised_at
from pickaxe.cli._text import told
from pickaxe.engine._errors import describe
from pickaxe.errors import InputError, PickaxeError, RunFailedError
from pickaxe.testing import simulate

HERE = str(Path(__file__))


def caught(body: Callable[[], object]) -> BaseException:
    with pytest.raises((ValueError, TimeoutError, ExceptionGroup, click.BadParameter)) as told:
        body()
    return told.value


def line_of(function: Callable[..., object], offset: int = 1) -> str:
    return f"{HERE}:{function.__code__.co_firstlineno + offset} in {function.__name__}"


def parses() -> object:
    return json.loads("{")


def outer() -> object:
    return parses()


def waits_too_long() -> None:
    async def sleepy() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(60)

    asyncio.run(sleepy())


def fails_in_a_group() -> None:
    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(parses))

    asyncio.run(both())


def test_an_exception_of_a_library_was_raised_where_own_code_called_it() -> None:
    assert raised_at(caught(outer)) == line_of(parses)


def test_a_value_that_does_not_fit_was_not_raised_in_the_library_that_checks_it() -> None:
    @agent
    async def promises(number: int) -> int:
        return "no number"  # type: ignore[return-value]

    with pytest.raises(RunFailedError, match="OutputError") as failed:
        simulate(promises, 1).result()
    assert "raised at" not in str(failed.value)


def test_an_exception_that_says_nothing_is_told_by_its_type_and_its_line() -> None:
    @agent
    async def is_late() -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(2)

    with pytest.raises(RunFailedError, match=r"failed: TimeoutError \(raised at "):
        simulate(is_late).result()
    assert told({"type": "TimeoutError", "message": "", "where": "a.py:1 in f"}) == "TimeoutError, at a.py:1 in f"


def test_a_group_of_exceptions_was_raised_where_its_first_was() -> None:
    assert raised_at(caught(fails_in_a_group)) == line_of(parses)


def test_what_a_timeout_interrupted_is_where_it_was_raised() -> None:
    at = raised_at(caught(waits_too_long))
    assert at is not None
    assert at.endswith(" in sleepy")


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_exception_that_cannot_say_what_it_is_is_recorded_all_the_same() -> None:
    def body() -> None:
        raise Speechless

    with pytest.raises(Speechless) as told:
        body()
    described = describe(told.value)
    assert described["type"] == "Speechless"
    assert described["message"] == "(it could not be described: RuntimeError)"
    assert described["where"] == line_of(body)
    assert "in body" in described["traceback"]


def test_a_message_is_recorded_though_its_traceback_cannot_be_formatted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise SystemError("AST constructor recursion depth mismatch")  # as Python 3.11 does now and then

    monkeypatch.setattr(traceback, "format_exception", fails)
    described = describe(ValueError("the reason"))
    assert described["message"] == "the reason"
    assert described["traceback"] == "(it could not be described: SystemError)"


def test_an_exception_that_nobody_raised_has_no_place() -> None:
    assert raised_at(InputError("never raised")) is None
    assert raised_at(BaseExceptionGroup("none raised", [PickaxeError("never raised")])) is None


def test_code_that_is_installed_is_told_by_its_outermost_line() -> None:
    # Without the frames of this file it is the traceback of a project that is installed as a package.
    error = caught(lambda: click.INT.convert("x", None, None))
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == HERE:
        trace = trace.tb_next
    assert trace is not None
    assert raised_at(error.with_traceback(trace)) == f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno} in convert"
