"""What the command line prints is safe and legible."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from pickaxe._states import StepKind, StepState
from pickaxe.cli._explain import about, was_replayed
from pickaxe.cli._text import jsonable, one_line, print_table, safe, say, shown_value, styled
from pickaxe.store import StepView


def step(**changes: object) -> StepView:
    now = datetime.now(UTC)
    values: dict[str, object] = dict.fromkeys(StepView.__slots__)
    values |= {"key": "t#1", "kind": StepKind.TOOL, "name": "t", "state": StepState.SUCCEEDED, "attempt": 1}
    values |= {"history": [], "input": {}, "created_at": now, "started_at": now, "finished_at": now}
    return StepView(**(values | changes))  # type: ignore[arg-type]


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
