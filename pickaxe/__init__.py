"""Durable, distributed LLM agents on Celery, Redis and Postgres."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pickaxe import errors
from pickaxe._version import __version__

if TYPE_CHECKING:
    from pickaxe._inject import Context, inject
    from pickaxe._rates import Rate
    from pickaxe._retry import Retry
    from pickaxe._settings import Settings
    from pickaxe.app import Pickaxe, Queue
    from pickaxe.authoring._decorators import agent, tool
    from pickaxe.authoring._flow import (
        continue_as,
        now,
        random,
        set_state,
        uuid4,
        wait_for_event,
        wait_for_signal,
    )
    from pickaxe.authoring._gather import first, gather
    from pickaxe.authoring._handles import Agent, Tool
    from pickaxe.client import Client, Run

__all__ = [
    "Agent",
    "Client",
    "Context",
    "Pickaxe",
    "Queue",
    "Rate",
    "Retry",
    "Run",
    "Settings",
    "Tool",
    "__version__",
    "agent",
    "continue_as",
    "errors",
    "first",
    "gather",
    "inject",
    "now",
    "random",
    "set_state",
    "tool",
    "uuid4",
    "wait_for_event",
    "wait_for_signal",
]

# Loaded when asked for: `pickaxe --help` and the embedded services need no Celery, and start the faster for it.
_HOMES = {
    "pickaxe._inject": ("Context", "inject"),
    "pickaxe._rates": ("Rate",),
    "pickaxe._retry": ("Retry",),
    "pickaxe._settings": ("Settings",),
    "pickaxe.app": ("Pickaxe", "Queue"),
    "pickaxe.authoring._decorators": ("agent", "tool"),
    "pickaxe.authoring._flow": (
        *("continue_as", "now", "random", "set_state"),
        *("uuid4", "wait_for_event", "wait_for_signal"),
    ),
    "pickaxe.authoring._gather": ("first", "gather"),
    "pickaxe.authoring._handles": ("Agent", "Tool"),
    "pickaxe.client": ("Client", "Run"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pickaxe' has no attribute {name!r}")
    # All of a home at once: a function must win over the submodule of the same name.
    home = import_module(_HOME_OF[name])
    # A handle that belongs to no app enqueues with what the environment says, which is the client's business.
    import_module("pickaxe.client")
    globals().update({other: getattr(home, other) for other in _HOMES[_HOME_OF[name]]})
    return globals()[name]
