"""The Celery app under a Pickaxe app."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from celery import Celery, Task
from redis.exceptions import RedisError

from pickaxe.broker._config import celery_config, configure
from pickaxe.broker._transport import install

logger = logging.getLogger(__name__)


class BrokerApp(Celery):  # type: ignore[misc]
    """A Celery app with Pickaxe's transport and settings; what the user configures on it wins."""

    def __init__(self, name: str, broker_url: str, result_url: str | None, conf: Mapping[str, Any] | None) -> None:
        install()
        # `set_as_current=False`: an application that has a Celery app of its own keeps it as the current one.
        super().__init__(name, set_as_current=False)
        configure(self, celery_config(broker_url, result_url, overrides=conf))

    def _get_backend(self) -> Any:
        """Celery's result backend, which for Pickaxe's own tasks counts in chords as well as it can.

        Celery's tracer raises when it cannot count, and then nobody acknowledges the message: each such message would
        take one of the places of those that may be prefetched, until the worker receives nothing any more.
        """
        backend = super()._get_backend()
        count = backend.on_chord_part_return

        def count_if_possible(request: Any, state: Any, result: Any, **options: Any) -> None:
            try:
                count(request, state, result, **options)
            except RedisError as error:
                if not hasattr(self.tasks.get(request.task), "pickaxe_fault"):
                    raise
                logger.warning("a chord was not counted; the sweeper sends what it would have sent: %s", error)

        backend.on_chord_part_return = count_if_possible
        return backend

    def send_task(self, *args: Any, **options: Any) -> Any:
        """Send a Celery task, as `delay` does too. Refused in an agent, whose every replay would send it again."""
        sys.audit("pickaxe.message")  # a connection that is open already raises no event of its own
        return super().send_task(*args, **options)

    def add_task(
        self,
        name: str,
        run: Callable[..., None],
        run_async: Callable[..., Coroutine[Any, Any, None]] | None = None,
        *,
        queue: str,
        fault: Callable[[Sequence[Any], Mapping[str, Any]], str | None],
        doc: str = "",
    ) -> None:
        """Register a task. With `run_async`, the coroutine pool awaits that instead of calling `run`.

        `fault` says of a message's args and kwargs why the task cannot be called with them, if it cannot.
        """
        body: dict[str, Any] = {
            "run": staticmethod(run),
            "name": name,
            "queue": queue,
            "__doc__": doc,
            "typing": False,
            "pickaxe_fault": staticmethod(fault),
        }
        if run_async is not None:
            body |= {"pickaxe_coroutine": True, "run_async": staticmethod(run_async)}
        task: type[Task] = type(name, (self.Task,), body)
        self.register_task(task())
        self.conf.task_routes = {**(self.conf.task_routes or {}), name: {"queue": queue}}
