"""What counts as a rate, and what a refusal says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickaxe._rates import Rate, parse_rates
from pickaxe.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50/s", Rate(50, 1.0)),
        ("30/m", Rate(30, 60.0)),
        ("1000/h", Rate(1000, 3600.0)),
        ("10/d", Rate(10, 86400.0)),
        ("100/15m", Rate(100, 900.0)),
        ("5/0.5s", Rate(5, 0.5)),
        ("10_000/day", Rate(10000, 86400.0)),
        (" 3 / 2 Hours ", Rate(3, 7200.0)),
    ],
)
def test_a_rate_is_a_count_over_a_window(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize(
    "text",
    [
        "",
        "50",
        "50/",
        "/s",
        "0/s",
        "-1/s",
        "1.5/s",
        "50/w",
        "50/0s",
        "50/s/s",
        "50 per s",
        "\u0665/s",
        None,
        50,
    ],
)
def test_a_malformed_rate_is_refused_by_value_and_with_examples(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Rate.parse(text)
    assert repr(text) in str(caught.value)
    assert '"100/15m"' in str(caught.value)


@pytest.mark.parametrize(
    ("count", "window"), [(0, 1.0), (True, 1.0), (1.5, 1.0), (1, 0.0), (1, math.inf), (1, math.nan)]
)
def test_a_rate_out_of_range_cannot_be_made(count: int, window: float) -> None:
    with pytest.raises(ConfigurationError, match="a rate's"):
        Rate(count, window)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from("smhd"))
def test_a_rate_is_read_back_as_it_is_written(count: int, factor: int, unit: str) -> None:
    rate = Rate.parse(f"{count}/{factor}{unit}")
    assert Rate.parse(str(rate)) == rate


def test_a_rate_is_written_in_its_shortest_form() -> None:
    assert [str(Rate.parse(text)) for text in ("50/1s", "30/60s", "100/900s", "5/0.5s")] == [
        "50/s",
        "30/m",
        "100/15m",
        "5/0.500000s",
    ]


@pytest.mark.parametrize(
    "value", ["50/s,1000/h", "50/s, 1000/h , 50/s", ["50/s", Rate(1000, 3600)], (Rate(50, 1), "1000/60m")]
)
def test_several_rates_are_given_as_text_or_as_a_sequence(value: str | list[str | Rate]) -> None:
    assert parse_rates(value) == (Rate(50, 1.0), Rate(1000, 3600.0))


def test_a_single_rate_stands_for_itself() -> None:
    assert parse_rates(Rate(1, 2)) == parse_rates("1/2s") == (Rate(1, 2.0),)


@pytest.mark.parametrize("value", ["", [], "50/s,", ["50/s", "x"], 7, None])
def test_a_list_with_anything_but_rates_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a rate"):
        parse_rates(value)
