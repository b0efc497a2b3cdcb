"""Places with a name: armed, counted, and otherwise not noticed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pickaxe import _failpoints
from pickaxe._failpoints import FailpointError, failpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    _failpoints.arm("")


def test_a_place_that_is_not_armed_is_passed() -> None:
    _failpoints.arm("elsewhere=raise")
    failpoint("here")


def test_an_armed_place_raises_at_its_time_and_only_then() -> None:
    _failpoints.arm("here=raise@2,there=raise")
    failpoint("here")
    with pytest.raises(FailpointError, match="here"):
        failpoint("here")
    failpoint("here")
    with pytest.raises(FailpointError, match="there"):
        failpoint("there")


def test_every_pass_of_every_place_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "counts"
    monkeypatch.setenv("PICKAXE_FAILPOINT_COUNTS", str(counts))
    _failpoints.arm("*=count")
    for place in ("commit.before", "commit.after", "commit.before"):
        failpoint(place)
    assert counts.read_text().split() == ["commit.before", "commit.after", "commit.before"]


def test_a_place_with_an_action_of_its_own_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "counts"
    monkeypatch.setenv("PICKAXE_FAILPOINT_COUNTS", str(counts))
    _failpoints.arm("*=count,here=raise@2")
    failpoint("here")
    failpoint("there")
    with pytest.raises(FailpointError):
        failpoint("here")
    assert counts.read_text().split() == ["there"]
