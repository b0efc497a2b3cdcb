"""Steps as they happen: a line for each that ended or waits, and below them, on a terminal, those that run."""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from types import TracebackType

from rich.live import Live
from rich.table import Table
from rich.text import Text

from pickaxe._durations import humanise
from pickaxe._states import StepKind
from pickaxe.cli._explain import about, tally
from pickaxe.cli._text import Cell, console, one_line, say, short_worker, shown_value, sign_of, styled, told
from pickaxe.client import Client
from pickaxe.store import StepView
from pickaxe.streams import Transition

MOST_RUNNING = 8
_ENDS = frozenset({"succeeded", "failed", "cancelled"})
_ASIDE = frozenset({"unknown", "quarantined"})
_WAITS = frozenset({"timer", "signal", "event", "child"})
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Screen:
    """Prints the transitions it is fed. To be entered while it is fed."""

    def __init__(self, client: Client, root: str) -> None:
        self.console = console()
        self._client = client
        self._root = root
        self._began: datetime | None = None
        self._steps: dict[tuple[str, str], StepView] = {}
        self._running: dict[tuple[str, str], Transition] = {}
        self._progress: dict[tuple[str, str], str] = {}
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        """Begin the part of the screen that moves."""
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._moving, console=self.console, refresh_per_second=10, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave only the lines."""
        if self._live is not None:
            self._live.stop()

    def note(self, *cells: Cell) -> None:
        """A line of one's own among the steps."""
        say(*cells, to=self.console)

    def feed(self, run: str, transition: Transition) -> None:
        """Show one transition."""
        if self._began is None:
            self._began = transition.at
        if transition.kind == "step":
            self._feed_step(run, transition)
        elif transition.kind == "restarted":
            self.note(("the live stream was lost; told again from the log", "dim"))
        elif run == self._root:
            self._line(transition, "", f"run {transition.state}", _error(transition), bold=True)

    def _feed_step(self, run: str, t: Transition) -> None:
        place = (run, t.step)
        if t.state == "running":
            self._running[place] = t
        elif t.state == "progress":
            self._progress[place] = shown_value(t.more.get("value"), 40)
        if t.state in _ENDS:
            self._ended(place, t)
        elif t.state == "lost":
            was = self._running.pop(place, None)
            on = short_worker(str(was.more.get("worker", ""))) if was else ""
            self._line(t, self._indent(run), t.step, f"{on} died; attempt {t.attempt} is lost")
        elif t.state == "retrying":
            self._running.pop(place, None)
            wait = t.more.get("wait")
            when = f", next in {humanise(float(wait))}" if isinstance(wait, int | float) else ""
            how = f"failed ({_error(t)})" if t.more.get("error") else t.more.get("reason") or "is over"
            self._line(t, self._indent(run), t.step, f"attempt {t.attempt} {how}{when}")
        elif t.state in _ASIDE:
            self._running.pop(place, None)
            self._line(t, self._indent(run), t.step, str(t.more.get("reason") or "set aside: see `pickaxe quarantine`"))
        elif t.state == "released":
            self._line(t, self._indent(run), t.step, "may run again")
        elif t.state == "requested" and t.more.get("type") in _WAITS:
            self._line(t, self._indent(run), t.step, self._wait(place, str(t.more["type"])), sign=("…", "blue"))

    def _ended(self, place: tuple[str, str], t: Transition) -> None:
        began = self._running.pop(place, None)
        self._progress.pop(place, None)
        spent = humanise((t.at - began.at).total_seconds()) if began and began.at and t.at else ""
        on = short_worker(str(began.more.get("worker", ""))) if began else ""
        again = f"attempt {t.attempt}" if t.attempt > 1 else self._tally(place)
        note = "  ".join(filter(None, (spent, on, again, _error(t))))
        self._line(t, self._indent(place[0]), t.step, note, about=self._about(place))

    def _line(
        self, t: Transition, indent: str, head: str, note: str, *, about: str = "", sign: Cell | None = None,
        bold: bool = False,
    ) -> None:  # fmt: skip
        since = (t.at - self._began).total_seconds() if t.at and self._began else 0.0
        name = f"{indent}{one_line(head)}"
        self.note(
            (f"{since:7.1f} s  ", "dim"), sign or sign_of(t.state), " ",
            (f"{name:<16}", "bold" if bold else ""), f" {about:<16} ", (one_line(note), "dim"),
        )  # fmt: skip

    def _wait(self, place: tuple[str, str], kind: str) -> str:
        step = self._step(place)
        if kind == "timer":
            lasts = (step.due - step.created_at).total_seconds() if step is not None and step.due is not None else None
            return "a durable timer" if lasts is None else f"a durable timer, {humanise(lasts)}"
        if kind == "child":
            return "a child run"
        name = step.name if step is not None else place[1]
        return f"waits for the {kind} {name!r}"

    def _tally(self, place: tuple[str, str]) -> str:
        """What has become of the calls of a gather that has ended."""
        step = self._step(place)
        if step is None or step.kind != StepKind.GATHER:
            return ""
        steps = self._client.store.view_steps(uuid.UUID(place[0]))
        return tally([s for s in steps if s.group == step.key])

    def _indent(self, run: str) -> str:
        return "" if run == self._root else "  "

    def _about(self, place: tuple[str, str]) -> str:
        step = self._step(place)
        return about(step, 28) if step is not None else ""

    def _step(self, place: tuple[str, str]) -> StepView | None:
        if place not in self._steps:
            for step in self._client.store.view_steps(uuid.UUID(place[0])):
                self._steps[place[0], step.key] = step
        return self._steps.get(place)

    def _moving(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        frame = _FRAMES[int(time.monotonic() * 10) % len(_FRAMES)]
        running = list(self._running.items())
        for place, t in running[:MOST_RUNNING]:
            step = self._steps.get(place)
            grid.add_row(
                styled((f"          {frame}", "cyan")),
                styled(self._indent(place[0]) + t.step, " ", about(step, 20) if step else ""),
                styled((self._progress.get(place, ""), "cyan")),
                styled((short_worker(str(t.more.get("worker", ""))), "dim")),
            )
        if len(running) > MOST_RUNNING:
            grid.add_row("", Text(f"and {len(running) - MOST_RUNNING} more", style="dim"))
        return grid


def _error(t: Transition) -> str:
    """What a transition tells of a failure."""
    return told({**t.more, "type": t.more["error"]}, 200) if t.more.get("error") else ""
