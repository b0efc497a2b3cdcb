"""The benchmarks: what is measured, and how the figures become tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import meter
from benchmarks.cases import OURS, cases
from benchmarks.report import BEGIN, END, ROWS, Results, write

README = Path(__file__).parents[2] / "benchmarks" / "README.md"


def frame(letter: bytes, body: bytes) -> bytes:
    return letter + (len(body) + 4).to_bytes(4, "big") + body


def line(mode: str, ok: bool = True, peer: str = OURS, **figures: Any) -> dict[str, Any]:
    return {"ok": ok, "group": "w1 hop", "peer": peer, "mode": mode, "tag": f"{peer} {mode} w1 --procs 2"} | figures


def test_every_case_has_a_tag_of_its_own() -> None:
    assert Counter(case.tag for case in cases()).most_common(1)[0][1] == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.title)
def test_every_row_of_the_table_is_measured_for_pickaxe(row: Any) -> None:
    assert any(case.group == row.group and case.peer == OURS for case in cases())


def test_a_quick_look_is_ours_and_the_floor() -> None:
    assert {case.peer for case in cases() if case.quick} == {OURS, "floor"}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_statements_are_counted_however_the_stream_is_cut(size: int) -> None:
    counts: Counter[str] = Counter()
    sent, received = meter.postgres(counts)
    statement = frame(b"P", b"SELECT 1") + frame(b"B", b"\0" * 20) + frame(b"E", b"\0" * 5) + frame(b"S", b"")
    for stream, watch in (
        (frame(b"", b"\0\3\0\0user\0bench\0\0") + statement * 2 + frame(b"Q", b"COMMIT\0"), sent),
        (frame(b"D", b"Z" * 300) + frame(b"Z", b"T") + frame(b"Z", b"T") + frame(b"Z", b"I"), received),
    ):
        for start in range(0, len(stream), size):
            watch(stream[start : start + size])
    assert counts == {"statements": 3, "round_trips": 3, "transactions": 1}


def test_a_burst_of_commands_is_one_round_trip() -> None:
    counts: Counter[str] = Counter()
    sent, received = meter.redis(counts)
    for watch in (sent, sent, received, received, sent, received):
        watch(b"x")
    assert counts["round_trips"] == 2


def test_a_cell_is_the_median_with_its_range_by_mode() -> None:
    lines = [line("plain", p50_ms=value) for value in (2.5, 1.5, 2.0)] + [line("tool", peer="floor", p50_ms=1.8)]
    assert "| plain **2** (1.5-2.5) | floor tool **1.8** |" in Results(lines).tables()


def test_a_failure_is_shown_and_not_averaged() -> None:
    some = Results([line("plain", p50_ms=2.0), line("plain", ok=False, error="no")]).tables()
    none = Results([line("plain", ok=False, error="no")]).tables()
    assert "plain **2**, 1 of 2 failed" in some
    assert "plain failed" in none


def test_the_tables_go_between_the_marks_of_the_readme(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README.read_text("utf-8"), "utf-8")
    write(readme, "| new |")
    write(readme, "| newer |")
    text = readme.read_text("utf-8")
    assert text.startswith("# Benchmarks")
    assert text.count("| newer |") == 1
    assert "| new |" not in text
    assert text.index(BEGIN) < text.index("| newer |") < text.index(END)
