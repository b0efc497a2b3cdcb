"""What the command line prints is safe and legible."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pickaxe import Client, Settings, streams
from pickaxe._states import RunState, StepKind, StepState
from pickaxe.cli._explain import about, aside_lines, tally, was_replayed, why_step
from pickaxe.cli._screen import Screen
from pickaxe.cli._text import jsonable, one_line, print_table, safe, say, shown_value, styled, told
from pickaxe.store import RunView, StepView
from pickaxe.streams import Transition


def step(**changes: object) -> StepView:
    now = datetime.now(UTC)
    values: dict[str, object] = dict.fromkeys(StepView.__slots__)
    values |= {"key": "t#1", "kind": StepKind.TOOL, "name": "t", "state": StepState.SUCCEEDED, "attempt": 1}
    values |= {"history": [], "input": {}, "created_at": now, "started_at": now, "finished_at": now}
    return StepView(**(values | changes))  # type: ignore[arg-type]


def from_log(of: StepView) -> list[Transition]:
    run: dict[str, object] = dict.fromkeys(RunView.__slots__)
    at = datetime.fromtimestamp(0, UTC)
    return streams.from_log(RunView(**(run | {"state": RunState.WAITING, "created_at": at})), [of])  # type: ignore[arg-type]


LOST = {
    "attempt": 1, "ended": "died", "owner": "w@h 7", "exit": "SIGSEGV", "alone": True, "started": 0.0, "died": 90.0,
    "at": 91.0,
}  # fmt: skip
UNFINISHED = {"finished_at": None, "due": None, "progress": None, "reconciling": False, "effect": "at_most_once"}


def test_a_step_that_was_set_aside_says_why_on_what_evidence_and_what_to_do() -> None:
    history = [LOST, {**LOST, "attempt": 2, "exit": None, "alone": False}]
    aside = step(state=StepState.QUARANTINED, reason="it kills", history=history, key="a b#1", **UNFINISHED)
    lines = aside_lines("01a1faed-af31-7000-8000-000000000000", aside)
    assert lines[0] == "a b#1 is quarantined: it kills; `pickaxe retry` releases it"
    assert lines[1].startswith("  attempt 1: worker process w@h 7 was ended by SIGSEGV at 1970-01-01")
    assert lines[1].endswith("1 m 30 s after it began")
    assert lines[2].endswith(", with others")
    assert lines[3] == "  pickaxe retry 01a1faed-af31-7000 'a b#1'"
    unknown = step(state=StepState.UNKNOWN, reason="it died: nobody knows", **UNFINISHED)
    assert "`pickaxe resolve` says how it goes on" in why_step(unknown, [], None)  # type: ignore[arg-type]
    asked = step(**UNFINISHED | {"state": StepState.UNKNOWN, "due": datetime.now(UTC) + timedelta(hours=1)})
    assert "is not known, asked " in why_step(asked, [], None)  # type: ignore[arg-type]
    asking = step(**UNFINISHED | {"state": StepState.RUNNING, "reconciling": True, "history": [LOST]})
    assert why_step(asking, [], None) == "its reconcile is asked: attempt 1 its worker died"  # type: ignore[arg-type]


def test_a_call_that_did_not_happen_and_a_timer_that_is_over_are_told_as_what_they_were(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {
        "attempt": 2,
        "ended": "did not happen",
        "owner": "w@h 8",
        "message": "the bank has no such charge",
        "at": 92.0,
    }
    charge = step(history=[LOST, asked], key="charge#1")
    over = step(kind=StepKind.TIMER, state=StepState.CANCELLED, key="timer#1", name="timer", due=None)
    screen = Screen(Client(Settings()), "run")
    screen._steps = {("run", "charge#1"): charge, ("run", "timer#1"): over}  # as they were read
    for transition in (*from_log(charge), *from_log(over)):
        screen.feed("run", transition)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.endswith("charge#1 attempt 2 found that its effect had not happened") for line in lines)
    assert any(line.endswith("timer#1 a durable timer") for line in lines)


def test_a_call_that_was_cancelled_in_the_middle_says_that_nobody_knows() -> None:
    cut = step(state=StepState.CANCELLED, **UNFINISHED)
    assert "no longer wanted while it ran: whether its effect" in why_step(cut, [], None)  # type: ignore[arg-type]
    for tidy in (
        step(state=StepState.CANCELLED, effect="idempotent"),
        step(state=StepState.CANCELLED, effect="at_most_once", reason="waits for its rate limit"),
        step(state=StepState.CANCELLED, effect="at_most_once", history=[LOST]),
        step(state=StepState.CANCELLED, effect="at_most_once", attempt=0),
    ):
        assert why_step(tidy, [], None) == ""  # type: ignore[arg-type]


def test_a_gather_that_has_ended_says_what_became_of_its_calls() -> None:
    gather = step(key="gather#1", kind=StepKind.GATHER, state=StepState.FAILED)
    ends = [StepState.SUCCEEDED, StepState.FAILED, StepState.CANCELLED, StepState.CANCELLED]
    calls = [step(key=f"t#{n}", group="gather#1", state=end) for n, end in enumerate(ends)]
    other = step(key="t#9", state=StepState.FAILED)
    note = why_step(gather, [gather, *calls, other], None)  # type: ignore[arg-type]
    assert note == "4 calls: 1 succeeded, 1 failed, 2 cancelled"
    assert tally(calls[:1]) == "1 call, all here"


def test_an_error_is_told_with_the_line_that_raised_it_from_the_working_directory() -> None:
    error = {"type": "ValueError", "message": "no\x1b way", "where": f"{Path.cwd()}/toolbox/search.py:7 in search"}
    assert told(error) == "ValueError: no\\x1b way, at toolbox/search.py:7 in search"
    assert (
        told({**error, "where": "/elsewhere/search.py:7 in search"}, 12)
        == "ValueError:…, at /elsewhere/search.py:7 in search"
    )
    assert told(None) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("a\rb", "a\\x0db"),
        ("\u202eevil", "\\u202eevil"),
        ("\ud800", "\\ud800"),
        ("\x9b31m", "\\x9b31m"),
        ("plain ✓ text", "plain ✓ text"),
    ],
)
def test_control_characters_are_shown_and_not_sent(text: str, shown: str) -> None:
    assert safe(text) == shown


def test_markup_in_untrusted_text_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    say("[bold red]", ("[/nothing]", "dim"))
    assert capsys.readouterr().out == "[bold red][/nothing]\n"


def test_a_line_is_cut_to_its_length() -> None:
    assert one_line("a\nb\tc") == "a b c"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


def test_styled_pieces_are_made_safe() -> None:
    assert styled("a\x07", ("b\x1b", "red")).plain == "a\\x07b\\x1b"


def test_a_table_in_a_pipe_is_aligned_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 200
    print_table(("name", "empty", "note"), [("  a", "", long), (("bcd", "red"), "", "[y]")])
    assert capsys.readouterr().out.splitlines() == ["name  note", f"  a   {long}", "bcd   [y]"]


def test_values_are_shown_as_json_on_one_line() -> None:
    assert shown_value({"a": [1, "é\x1b"]}) == '{"a": [1, "é\\u001b"]}'
    assert shown_value("text\nmore") == "text more"


def test_views_become_plain_json() -> None:
    found = jsonable(step(child=uuid.UUID(int=1)))
    assert found["child"] == str(uuid.UUID(int=1))
    assert isinstance(found["created_at"], str)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"limit": 5, "query": "cats"}, "cats"),
        ({"question": {"pause": 2, "text": "why?"}}, "why?"),
        ({"terms": ["a", "b"], "limit": 5}, "a, b"),
        ({"items": [{"a": 1}, {"a": 2}]}, "2 items"),
        ({"n": 7}, "7"),
        ({}, ""),
    ],
)
def test_a_call_is_about_the_first_text_in_its_input(given: object, expected: str) -> None:
    assert about(step(input=given)) == expected


def test_replayed_means_recorded_before_a_worker_of_the_run_died() -> None:
    from types import SimpleNamespace

    now = datetime.now(UTC)
    run = SimpleNamespace(finished_at=None)
    early = step(finished_at=now - timedelta(seconds=5))
    assert was_replayed(early, run, now.timestamp())  # type: ignore[arg-type]
    assert not was_replayed(early, run, None)  # type: ignore[arg-type]
    assert not was_replayed(step(finished_at=now + timedelta(seconds=1)), run, now.timestamp())  # type: ignore[arg-type]
    over = SimpleNamespace(finished_at=now - timedelta(seconds=1))
    assert not was_replayed(early, over, now.timestamp())  # type: ignore[arg-type]
