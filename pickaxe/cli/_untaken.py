"""Work that nobody will take: its queue has no worker, or no worker knows what it asks for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pickaxe import _values
from pickaxe._durations import humanise
from pickaxe.cli._text import safe, short
from pickaxe.client import Client


@dataclass(frozen=True)
class Takers:
    """Who takes what: `knows` maps living workers to their agents and tools, `serves` queues to those that answered.

    Of the `unheard` nobody knows what they take from: they did not answer, or one that did has the same name.
    """

    knows: dict[str, set[str]]
    serves: dict[str, set[str]]
    unheard: list[str]


def takers(workers: Iterable[Any], served: dict[str, set[str]], shared_names: Iterable[str]) -> Takers:
    """From the rows of the worker processes, and the queues that each worker has said it takes from."""
    knows: dict[str, set[str]] = defaultdict(set)
    for worker in workers:
        knows[worker.name] |= set(_values.load(worker.handles))
    serves: dict[str, set[str]] = defaultdict(set)
    for name, queues in served.items():
        for queue in queues:
            serves[queue].add(name)
    return Takers(dict(knows), dict(serves), sorted({*knows}.difference(served) | {*shared_names}))


@dataclass(frozen=True)
class Untaken:
    """Calls of one tool, or runs of one agent, in one queue. `certain`: every living worker was heard."""

    found: str
    advice: str
    certain: bool


def untaken(client: Client, who: Takers) -> list[Untaken]:
    """The open work that no living worker can take, the oldest first."""
    found = []
    for work in client.store.open_work():
        why = _why(work, who)
        if why is not None:
            reason, advice, certain = why
            found.append(Untaken(f"{_what(work)}: {reason}", advice, certain))
    return found


def _why(work: Any, who: Takers) -> tuple[str, str, bool] | None:
    name, queue = safe(work.name), safe(work.queue)
    if not any(work.name in known for known in who.knows.values()):
        return f"no living worker knows {work.kind} {name!r}", _listed(work.kind), True
    if not who.serves:
        return None
    there = who.serves.get(work.queue, set())
    if any(work.name in who.knows.get(worker, ()) for worker in there):
        return None
    certain = not who.unheard
    if there:
        reason = f"those that take from queue {queue!r} ({', '.join(sorted(there))}) do not know it"
        return reason, _listed(work.kind), certain
    return f"no worker takes from queue {queue!r}", f"pickaxe worker -Q {queue}", certain


def _listed(kind: str) -> str:
    return f"list it in Pickaxe({kind}s=[...]) and restart the workers"


def _what(work: Any) -> str:
    kind = "call" if work.kind == "tool" else "run"
    age = humanise(max(0.0, (datetime.now(UTC) - work.since).total_seconds()))
    first = f"{short(work.run)} {safe(work.key)}" if work.key else short(work.run)
    return f"{work.count} {kind}{'s' if work.count > 1 else ''} of {safe(work.name)!r}, the first for {age} ({first})"
