"""A run and its child runs, as they happen."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from rich.markdown import Markdown

from pickaxe.cli._explain import Fleet, why_run
from pickaxe.cli._screen import Screen
from pickaxe.cli._text import console, jsonable, print_json, safe
from pickaxe.client import Client, Run
from pickaxe.errors import ResultTimeoutError
from pickaxe.streams import Transition
from pickaxe.streams import follow as transitions_of

SILENCE = 3.0
"""Seconds without news after which somebody who watches is told what a run waits for."""

MOST_RUNS = 50
"""Runs of a tree that are followed at the same time; of the others only the beginning and the end are seen."""


def follow(client: Client, run: Run[Any], *, as_json: bool = False, patience: float | None = None) -> None:
    """Print what happens to a run until it ends."""
    if as_json:
        for of, transition in follow_tree(client, run.id, patience):
            print_json({"run": of, **transition.as_json()})
        return
    with Screen(client, run.id) as screen:
        for of, transition in follow_tree(client, run.id, patience, lambda why: screen.note((f"  {why}", "dim"))):
            screen.feed(of, transition)


def follow_tree(
    client: Client, run: str, patience: float | None = None, on_silence: Callable[[str], None] | None = None
) -> Iterator[tuple[str, Transition]]:
    """The transitions of a run and of those below it, merged. Raises `ResultTimeoutError` after `patience` seconds.

    When nothing happens for a while, `on_silence` is told why, once.
    """
    follower = _TreeFollower(client)
    follower.start(run)
    deadline = None if patience is None else time.monotonic() + patience
    while follower.open:
        item = follower.next(deadline if on_silence is None else _sooner(deadline, SILENCE))
        if item is None and on_silence is not None and (deadline is None or time.monotonic() < deadline):
            on_silence(_why(client, run))
            on_silence = None
            continue
        if item is None:
            raise ResultTimeoutError(
                f"run {run} has not ended in time; it goes on ({_why(client, run)}): see `pickaxe show {run[:18]}`",
                run_id=run,
            )
        of, transition = item
        if isinstance(transition, Exception):
            raise transition
        if transition is None:
            follower.open.discard(of)
            if of == run:
                return
            continue
        yield of, transition
        if transition.kind == "step" and transition.more.get("type") == "child":
            follower.start_children(of)


def _sooner(deadline: float | None, pause: float) -> float:
    soon = time.monotonic() + pause
    return soon if deadline is None else min(deadline, soon)


def _why(client: Client, run: str) -> str:
    view = client.store.view_run(uuid.UUID(run))
    reasons = why_run(view, client.store.view_steps(uuid.UUID(run)), Fleet(client)) if view else []
    return "; ".join(reason.strip() for reason in reasons[:2]) or "it is at work"


class _TreeFollower:
    """One thread for each run, one queue for all."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: set[str] = set()
        self._items: queue.Queue[tuple[str, Transition | Exception | None]] = queue.Queue()
        self.open: set[str] = set()

    def start(self, run: str) -> None:
        if run in self._known or len(self.open) >= MOST_RUNS:
            return
        self._known.add(run)
        self.open.add(run)
        threading.Thread(target=self._follow, args=(run,), daemon=True).start()

    def start_children(self, run: str) -> None:
        for child in self._client.store.children(uuid.UUID(run)):
            self.start(str(child.id))

    def next(self, deadline: float | None) -> tuple[str, Transition | Exception | None] | None:
        try:
            return self._items.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            return None

    def _follow(self, run: str) -> None:
        try:
            for transition in transitions_of(self._client.store, self._client.redis, uuid.UUID(run), None):
                self._items.put((run, transition))
        except Exception as error:  # noqa: BLE001 - raised again by who reads the queue
            self._items.put((run, error))
        self._items.put((run, None))


def print_value(value: Any) -> None:
    """A result for people: Markdown as such, everything else as JSON."""
    out = console()
    if isinstance(value, dict) and isinstance(value.get("markdown"), str):
        rest = {name: v for name, v in value.items() if name != "markdown"}
        print_json(rest)
        print_markdown(value["markdown"])
    elif isinstance(value, str):
        out.print(safe(value), soft_wrap=True)
    elif out.is_terminal:
        out.print_json(data=jsonable(value), ensure_ascii=True)
    else:
        print_json(value)


def print_markdown(text: str) -> None:
    """Markdown, laid out on a terminal and as it is in a pipe. Links are text, so they cannot hide where they go."""
    out = console()
    if out.is_terminal:
        out.print(Markdown(safe(text), hyperlinks=False))
    else:
        out.print(safe(text), soft_wrap=True)
