"""Durable, distributed LLM agents on Celery, Redis and Postgres."""

from pickaxe import errors
from pickaxe._inject import Context, inject
from pickaxe._rates import Rate
from pickaxe._retry import Retry
from pickaxe._settings import Settings
from pickaxe._version import __version__
from pickaxe.app import Pickaxe, Queue
from pickaxe.authoring._decorators import agent, tool
from pickaxe.authoring._flow import (
    continue_as,
    first,
    gather,
    now,
    random,
    set_state,
    uuid4,
    wait_for_event,
    wait_for_signal,
)
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
