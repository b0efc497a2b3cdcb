"""The broker: the only part of Pickaxe that knows Celery.

* `install`, `celery_config`, `configure`: make an app's transport and settings what Pickaxe is tested with.
* `Publisher`, `Message`: send messages; `queues_served`: who takes them.
* `Consumer`: nothing that arrives is dropped silently.
* `CoroutinePool`, `use_coroutine_pool`: run async tasks; `current_message`: for which message.
* `on_worker_start` and its kin, `running_worker`: the worker's life.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pickaxe.broker._app import BrokerApp
from pickaxe.broker._config import DEFAULT_PRIORITY_STEPS, celery_config, configure, is_redis
from pickaxe.broker._context import MessageContext, current_message
from pickaxe.broker._lifecycle import (
    WorkerInfo,
    is_stopping,
    on_child_exit,
    on_process_start,
    on_process_stop,
    on_worker_boot,
    on_worker_start,
    on_worker_stop,
    running_worker,
)
from pickaxe.broker._publish import Message, Publisher, PublishError
from pickaxe.broker._transport import Command, install

if TYPE_CHECKING:
    from pickaxe.broker._consumer import Consumer
    from pickaxe.broker._control import queues_served
    from pickaxe.broker._pool import TaskPool as CoroutinePool
    from pickaxe.broker._pool import use_coroutine_pool

#: Loaded when asked for: few need them, and they pull in much of Celery.
_LAZY = {
    "Consumer": ("pickaxe.broker._consumer", "Consumer"),
    "CoroutinePool": ("pickaxe.broker._pool", "TaskPool"),
    "queues_served": ("pickaxe.broker._control", "queues_served"),
    "use_coroutine_pool": ("pickaxe.broker._pool", "use_coroutine_pool"),
}

__all__ = [
    "DEFAULT_PRIORITY_STEPS",
    "BrokerApp",
    "Command",
    "Consumer",
    "CoroutinePool",
    "Message",
    "MessageContext",
    "PublishError",
    "Publisher",
    "WorkerInfo",
    "celery_config",
    "configure",
    "current_message",
    "install",
    "is_redis",
    "is_stopping",
    "on_child_exit",
    "on_process_start",
    "on_process_stop",
    "on_worker_boot",
    "on_worker_start",
    "on_worker_stop",
    "queues_served",
    "running_worker",
    "use_coroutine_pool",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(import_module(module), attribute)
