"""Named places where a test can make this process die.

`PICKAXE_FAILPOINTS="commit.after=kill"` kills it at that place, `"commit.after=kill@3"` at the third time it
gets there, `"publish.before=raise"` raises instead and `stop` freezes it. Several are separated by commas.
`"*=count"` notes every place that is passed, in a file named by `PICKAXE_FAILPOINT_COUNTS`: a line for each pass.
Without the variable a failpoint costs one look at an empty dictionary.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

from pickaxe.errors import PickaxeError

EVERYWHERE = "*"

_hits: Counter[str] = Counter()
_armed: dict[str, tuple[str, int]] = {}


class FailpointError(PickaxeError):
    """Raised where a failpoint is armed with `raise`."""


def arm(description: str) -> None:
    """Replace what is armed by what `description` says."""
    _armed.clear()
    _hits.clear()
    for part in filter(None, description.split(",")):
        name, _, action = part.partition("=")
        verb, _, number = action.partition("@")
        _armed[name] = (verb or "kill", int(number or 1))


def failpoint(name: str) -> None:
    """This place is called `name`."""
    if _armed and (name in _armed or EVERYWHERE in _armed):
        _reached(name)


def _reached(name: str) -> None:
    verb, number = _armed.get(name) or _armed[EVERYWHERE]
    if verb == "count":
        _note(name)
        return
    _hits[name] += 1
    if _hits[name] != number:
        return
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "raise":
        raise FailpointError(f"failpoint {name}")


def _note(name: str) -> None:
    # One write to a file opened for appending: several processes may share it.
    with Path(os.environ["PICKAXE_FAILPOINT_COUNTS"]).open("ab", buffering=0) as counts:
        counts.write(f"{name}\n".encode())


arm(os.environ.get("PICKAXE_FAILPOINTS", ""))
