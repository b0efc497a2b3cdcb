"""`Pickaxe`: a Celery app made of handles."""

from __future__ import annotations

import gc
import logging
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pickaxe import _values
from pickaxe._inject import resources
from pickaxe._rates import Rate, parse_rates
from pickaxe._settings import Settings
from pickaxe._specs import AgentSpec, ToolSpec
from pickaxe._texts import storable
from pickaxe.authoring._handles import Agent, EnqueueOptions, Handle, Tool
from pickaxe.broker import (
    BrokerApp,
    current_message,
    is_redis,
    is_stopping,
    on_child_exit,
    on_process_start,
    on_process_stop,
    on_worker_boot,
    on_worker_start,
    on_worker_stop,
    running_worker,
)
from pickaxe.client import Client, Run
from pickaxe.engine import _work
from pickaxe.engine._engine import Engine, new_owner
from pickaxe.engine._liveness import Liveness
from pickaxe.engine._messages import agent_fault, tool_fault
from pickaxe.engine._namesakes import warn_of_namesakes
from pickaxe.engine._quarantine import report_exit
from pickaxe.engine._sweeper import Sweeper
from pickaxe.errors import ConfigurationError, DuplicateHandleError, ServiceUnavailableError

logger = logging.getLogger("pickaxe")

_UNSET = "memory://"


@dataclass(frozen=True, slots=True)
class Queue:
    """Fleet-wide rules for one Celery queue. `rate_limit` as for tools: `"50/s"`, `"50/s,1000/h"`."""

    name: str
    rate_limit: str | Rate | Sequence[str | Rate] | None = None


class Pickaxe(BrokerApp):
    """A Celery app that runs these agents and tools.

    `celery -A your.module worker -Q agents,tools` works unchanged, and so does Flower: each agent and each
    tool is one Celery task of its own name. `queues` puts fleet-wide limits on queues; `conf` is plain Celery
    configuration, which wins over Pickaxe's; `settings` default to the environment (`PICKAXE_DATABASE_URL`,
    `PICKAXE_REDIS_URL`, …).

    Building it connects to nothing. Raises `DuplicateHandleError` and `ConfigurationError`.
    """

    def __init__(
        self,
        name: str = "pickaxe",
        *,
        agents: Iterable[Agent[Any, Any]] = (),
        tools: Iterable[Tool[Any, Any]] = (),
        queues: Iterable[Queue] = (),
        settings: Settings | None = None,
        conf: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings if settings is not None else Settings()
        self.handles = _by_name([*_of_kind(Agent, agents), *_of_kind(Tool, tools)])
        self.queue_limits = _queue_limits(queues)
        super().__init__(name, _broker_url(self.settings), _result_url(self.settings), conf)
        self._liveness: Liveness | None = None
        self._sweeper: Sweeper | None = None
        self._family = new_owner()
        for handle in self.handles.values():
            handle.spec.signature.check()
            handle.bind(self)
            self._add(handle)
        self.pickaxe_on_unknown = self._unknown_task
        self.pickaxe_on_malformed = self._malformed_message
        on_worker_boot(self, self._worker_booting)
        on_process_start(self, self._process_started)
        on_process_stop(self, self._process_stopped)
        on_worker_start(self, self._worker_started)
        on_worker_stop(self, self._worker_stopped)
        on_child_exit(self, self._child_exited)

    @cached_property
    def client(self) -> Client:
        """Runs seen from outside: enqueue, read, signal, cancel."""
        return Client(self.settings, publisher_app=self)

    @cached_property
    def engine(self) -> Engine:
        """This process's engine."""
        return Engine(
            name=self.main,
            store=self.client.store,
            publisher=self.client.publisher,
            redis_client=self.client.redis,
            settings=self.settings,
            agents={n: h.spec for n, h in self.handles.items() if isinstance(h.spec, AgentSpec)},
            tools={n: h.spec for n, h in self.handles.items() if isinstance(h.spec, ToolSpec)},
            queue_limits=self.queue_limits,
            stopping=lambda: is_stopping(self),
            worker=lambda: running_worker(self),
        )

    def enqueue(
        self,
        handle: Agent[Any, Any],
        calls: Sequence[Any],
        options: Sequence[EnqueueOptions],
        connection: Any,
    ) -> list[Run[Any]]:
        """What handles do in `enqueue`: see there."""
        return self.client.enqueue(handle, calls, options, connection)

    def run(self, run_id: str | uuid.UUID) -> Run[Any]:
        """The run with this id. Its result is typed when this app knows its agent."""
        return self.client.run(run_id, self.handles)

    # What workers do.

    def _add(self, handle: Handle[Any, Any]) -> None:
        spec = handle.spec
        if isinstance(spec, AgentSpec):
            self.add_task(spec.name, self._agent_task, queue=spec.queue, fault=agent_fault, doc=spec.description)
            return
        assert isinstance(spec, ToolSpec)
        tool = spec

        def run(**message: Any) -> None:
            self._tool_task(tool, message)

        async def run_async(**message: Any) -> None:
            await self._tool_task_async(tool, message)

        self.add_task(
            spec.name, run, run_async if spec.is_async else None,
            queue=spec.queue, fault=tool_fault, doc=spec.description,
        )  # fmt: skip

    def _agent_task(self, run: str) -> None:
        _work.reduce(self.engine, uuid.UUID(run))

    def _tool_task(self, spec: ToolSpec, message: dict[str, Any]) -> None:
        _work.call(self.engine, spec, message, chord=_in_chord())

    async def _tool_task_async(self, spec: ToolSpec, message: dict[str, Any]) -> None:
        await _work.call_async(self.engine, spec, message, chord=_in_chord())

    def _unknown_task(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Any, again: str | None
    ) -> None:
        """Nothing is dropped and no attempt is burned: the row waits, longer every time, and says why."""
        worker = running_worker(self)
        where = f"worker {worker.hostname}" if worker else "a worker"
        reason = f"{where} does not know {name!r}: add it to its Pickaxe(...), or start a worker that has it"
        cap, store = self.settings.redispatch_cap, self.client.store
        try:
            run = uuid.UUID(str(kwargs["run"]))
        except (KeyError, ValueError):
            store.set_aside(
                reason=reason, body=repr((args, kwargs)), headers=_shown(headers), queue=_queue(again), message=again
            )
            return
        if "step" in kwargs:
            store.defer_unknown_step(run, storable(str(kwargs["step"])), reason, cap)
        else:
            store.defer_run(run, reason, cap)

    def _malformed_message(self, body: bytes, headers: Any, properties: Any, reason: str, again: str | None) -> None:
        number = self.client.store.set_aside(
            reason=reason,
            body=body[:65536].decode("utf-8", "backslashreplace").replace("\0", "\\0"),
            headers=_shown(headers),
            queue=str((properties.get("delivery_info") or {}).get("routing_key", "")),
            message=again,
        )
        logger.error("a malformed message was set aside as dead letter %d: %s", number, reason)

    def _worker_booting(self) -> None:
        """A worker that could not record anything does not start: exit code 3, and why."""
        self._family = new_owner()  # before the pool forks
        try:
            self.client.wait_until_ready(self.settings.boot_patience)
        except ServiceUnavailableError as error:
            logger.critical("%s", error)
            raise SystemExit(3) from error
        finally:
            self.client.close()  # before the pool forks

    def _process_started(self) -> None:
        worker = running_worker(self)
        if self._liveness is not None:
            return
        self.client.forked()
        self.__dict__.pop("engine", None)
        self.engine.worker_name = worker.hostname if worker else ""
        self.engine.family = self._family
        self._liveness = Liveness(self.engine)
        self._liveness.start()
        # What there is by now stays, and need not be looked at by every collection.
        gc.collect()
        gc.freeze()

    def _process_stopped(self) -> None:
        if self._liveness is not None:
            self._liveness.stop()
        resources.close()

    def _worker_started(self) -> None:
        self.engine.worker_name = getattr(running_worker(self), "hostname", "")
        self.engine.family = self._family
        self._sweeper = Sweeper(self.engine)
        self._sweeper.start()
        # In a thread, as below: nothing waits for a warning.
        threading.Thread(target=warn_of_namesakes, args=(self.engine,), daemon=True).start()

    def _worker_stopped(self) -> None:
        if self._sweeper is not None:
            self._sweeper.stop()

    def _child_exited(self, pid: int, status: int) -> None:
        # In a thread, for the database may be away, and the broker is not to wait for it.
        threading.Thread(target=report_exit, args=(self.engine, pid, status), daemon=True).start()


def _in_chord() -> bool:
    message = current_message()
    return message is not None and message.headers.get("chord") is not None


def _of_kind(kind: type[Handle[Any, Any]], handles: Iterable[Handle[Any, Any]]) -> Iterator[Handle[Any, Any]]:
    for handle in handles:
        if isinstance(handle, Handle) and not isinstance(handle, kind):
            other, name = ("agents", "tools") if kind is Tool else ("tools", "agents")
            raise ConfigurationError(f"Pickaxe({name}=…) was given {handle!r}: put it in {other}=…")
        yield handle


def _by_name(handles: Sequence[Handle[Any, Any]]) -> dict[str, Handle[Any, Any]]:
    found: dict[str, Handle[Any, Any]] = {}
    for handle in handles:
        if not isinstance(handle, Handle):
            raise ConfigurationError(
                f"Pickaxe(...) takes handles made by @agent and @tool, not {handle!r}: decorate the function"
            )
        other = found.setdefault(handle.name, handle)
        if other is not handle:
            raise DuplicateHandleError(
                f"two handles are named {handle.name!r}: {_where(other)} and {_where(handle)}. Names are the Celery "
                f"task names and the keys of the log: give one of them another with `name=`."
            )
    return found


def _where(handle: Handle[Any, Any]) -> str:
    function = handle.spec.function
    return f"{function.__module__}.{function.__qualname__}"


def _queue_limits(queues: Iterable[Queue]) -> dict[str, tuple[Rate, ...]]:
    return {queue.name: parse_rates(queue.rate_limit) for queue in queues if queue.rate_limit is not None}


def _broker_url(settings: Settings) -> str:
    url = settings.broker_url or settings.redis_url
    return url.get_secret_value() if url else _UNSET


def _result_url(settings: Settings) -> str | None:
    url = settings.redis_url
    return url.get_secret_value() if url and is_redis(url.get_secret_value()) else None


def _queue(again: str | None) -> str:
    return "" if again is None else str(_values.load(again)["queue"])


def _shown(headers: Any) -> str:
    return _values.dump({str(k): repr(v)[:500] for k, v in dict(headers).items()})


__all__ = ["Pickaxe", "Queue"]
