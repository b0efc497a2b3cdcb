"""The way to a fleet from outside: start runs, find them, publish events."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import redis

from pickaxe import _values
from pickaxe._failpoints import failpoint
from pickaxe._run import Run
from pickaxe._settings import Settings
from pickaxe._texts import checked
from pickaxe._uuids import uuid7
from pickaxe.authoring import _handles
from pickaxe.authoring._handles import Agent, EnqueueOptions, Handle
from pickaxe.broker import BrokerApp, Publisher
from pickaxe.engine._dispatch import agent_message, publish, publish_run
from pickaxe.engine._engine import Engine
from pickaxe.errors import (
    ConfigurationError,
    InputError,
    NotFoundError,
    SchemaError,
    ServiceUnavailableError,
)
from pickaxe.store import Database, NewRun, RunView, Store, check_schema
from pickaxe.store._outbox import insert_with

logger = logging.getLogger("pickaxe")


class Client:
    """A connection to the fleet's Postgres and Redis. Connects when first used."""

    def __init__(self, settings: Settings, *, publisher_app: Any = None) -> None:
        self.settings = settings
        self._app = publisher_app

    @cached_property
    def store(self) -> Store:
        """The log."""
        if self.settings.database_url is None:
            raise ConfigurationError(
                "PICKAXE_DATABASE_URL is not set: it says where the log is kept, such as "
                "postgresql://user@host:5432/name. For a try-out, `pickaxe dev` brings its own, and "
                "tells what to export."
            )
        url = self.settings.database_url.get_secret_value()
        database = Database(url, pool_size=self.settings.pool_size, answer_within=self.settings.answer_within)
        return Store(database, redispatch=self.settings.redispatch_after)

    @cached_property
    def redis(self) -> redis.Redis:
        """Limits, streams, and the broker's incarnation."""
        if self.settings.redis_url is None:
            raise ConfigurationError(
                "PICKAXE_REDIS_URL is not set: it is the broker, and keeps rate limits and live streams, such as "
                "redis://host:6379/0. For a try-out, `pickaxe dev` brings its own, and tells what to export."
            )
        try:
            return redis.Redis.from_url(
                self.settings.redis_url.get_secret_value(),
                decode_responses=True, socket_timeout=3, socket_connect_timeout=3, health_check_interval=10,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigurationError(
                f"PICKAXE_REDIS_URL is not a Redis URL: {error}. It should look like redis://host:6379/0"
            ) from error

    @cached_property
    def publisher(self) -> Publisher:
        """The broker."""
        url = self.settings.redis_url
        return Publisher(self._broker_app(), redis_url=None if url is None else url.get_secret_value())

    def _broker_app(self) -> Any:
        if self._app is None:
            url = self.settings.broker_url or self.settings.redis_url
            if url is None:
                raise ConfigurationError("PICKAXE_REDIS_URL is not set: it is the broker, such as redis://host:6379/0")
            self._app = BrokerApp("pickaxe-client", url.get_secret_value(), None, None)
        return self._app

    @cached_property
    def engine(self) -> Engine:
        """An engine that runs nothing: it publishes and cancels."""
        return Engine(
            name="client", store=self.store, publisher=self.publisher, redis_client=self.redis,
            settings=self.settings, agents={}, tools={}, queue_limits=getattr(self._app, "queue_limits", {}),
        )  # fmt: skip

    def forked(self) -> None:
        """After a fork: the parent's connections are the parent's."""
        if "store" in self.__dict__:
            self.store.database.forked()
        for name in ("redis", "publisher", "engine"):
            self.__dict__.pop(name, None)

    def close(self) -> None:
        """Close all connections."""
        if "store" in self.__dict__:
            self.store.database.close()
        if "redis" in self.__dict__:
            self.redis.close()

    def check(self) -> None:
        """Whether both services answer and the schema fits. Raises a typed error that says what to do."""
        check_schema(self.store.database)
        try:
            self.redis.ping()
        except redis.RedisError as error:
            raise ServiceUnavailableError(
                f"cannot reach Redis at {self.redis_place}: {str(error).rstrip('.')}. Is it running, and is "
                f"PICKAXE_REDIS_URL right? Nothing already accepted is lost."
            ) from error

    def wait_until_ready(self, patience: float, tell: Callable[[str], None] = logger.warning) -> None:
        """`check`, tried again with growing pauses for `patience` seconds. A wrong schema is not waited for."""
        deadline, pause = time.monotonic() + patience, 0.5
        while True:
            try:
                return self.check()
            except SchemaError:
                raise
            except ServiceUnavailableError as error:
                if time.monotonic() + pause >= deadline:
                    raise
                tell(f"{error} Trying again in {pause:g} s.")
            time.sleep(pause)
            pause = min(pause * 2, 10.0)

    @property
    def redis_place(self) -> str:
        """Where Redis is, without the password."""
        options = self.redis.connection_pool.connection_kwargs
        return f"redis://{options.get('host', '')}:{options.get('port', '')}/{options.get('db', 0)}"

    def enqueue(
        self,
        handle: Agent[Any, Any],
        calls: Sequence[Any],
        options: Sequence[EnqueueOptions],
        connection: Any = None,
    ) -> list[Run[Any]]:
        """What handles do in `enqueue`: see there."""
        runs = [self._new_run(handle, args, kwargs, o) for (args, kwargs), o in zip(calls, options, strict=True)]
        if connection is None:
            failpoint("enqueue.before")
            ids = self.store.enqueue(runs)
            failpoint("enqueue.after")
            self._publish_new([run for run, run_id in zip(runs, ids, strict=True) if run.id == run_id])
        else:
            # Due as soon as it is visible: only some drivers tell when the transaction commits.
            runs = [replace(run, due_in=run.delay) for run in runs]
            known = insert_with(connection, runs, on_commit=lambda: self._publish_new(runs))
            ids = [known.get((run.agent, run.idempotency_key), run.id) for run in runs]
        return [Run(self, run_id, handle, is_new=run.id == run_id) for run, run_id in zip(runs, ids, strict=True)]

    def _publish_new(self, runs: Sequence[NewRun]) -> None:
        if later := [run.delay for run in runs if run.delay]:
            self.engine.nudge(min(later))
        now = [run for run in runs if not run.delay]
        publish(self.engine, [agent_message(r.id, r.agent, r.queue, r.priority, r.id, 0) for r in now])

    def _new_run(self, handle: Agent[Any, Any], args: Any, kwargs: Any, options: EnqueueOptions) -> NewRun:
        spec, own = handle.spec, handle._options
        text = spec.signature.encode_input(args, kwargs, cap=self.settings.max_payload)
        priority = next((p for p in (options.priority, own.priority, spec.priority) if p is not None), 5)
        if not isinstance(priority, int) or not 0 <= priority <= 9:
            raise InputError(f"priority {priority!r} of {spec.what} must be between 0 and 9 (the most urgent)")
        if options.idempotency_key is not None:
            checked(options.idempotency_key, "the idempotency key")
        timeout = own.timeout if own.timeout is not None else spec.timeout
        return NewRun(
            uuid7(), spec.name, spec.version, own.queue or spec.queue, priority, text,
            delay=options.delay,
            due_in=options.delay or self.settings.redispatch_after,
            timeout=None if timeout is None else timeout + options.delay,
            idempotency_key=options.idempotency_key,
            metadata=None if options.metadata is None else self._metadata(options.metadata),
        )  # fmt: skip

    def _metadata(self, metadata: Mapping[str, Any]) -> str:
        if not isinstance(metadata, Mapping):
            raise InputError(f"the metadata must be a mapping, not {metadata!r}")
        return _values.encode(
            _values.adapter(dict[str, Any]),
            dict(metadata),
            what="the metadata",
            cap=self.settings.max_payload,
        )

    def run(self, run_id: str | uuid.UUID, handles: Mapping[str, Handle[Any, Any]] | None = None) -> Run[Any]:
        """The run with this id, or whose id begins like this. Raises `NotFoundError`."""
        run = self._find(run_id)
        view = self.store.view_run(run)
        assert view is not None
        return Run(self, run, (handles or {}).get(view.agent))

    def _find(self, run_id: str | uuid.UUID) -> uuid.UUID:
        found = self.store.find_runs(checked(str(run_id), "the id of the run"))
        if not found:
            raise NotFoundError(f"there is no run {run_id!s} in {self.store.database.place}: see `pickaxe runs`")
        if len(found) > 1:
            raise NotFoundError(f"{run_id!s} begins the id of more than one run: give more of it")
        return found[0]

    def queues_served(self, *, patience: float = 1.0) -> dict[str, set[str]]:
        """The workers that answer within `patience` seconds, by name, and the queues that each takes from.

        Raises `ServiceUnavailableError` when the broker is away.
        """
        from pickaxe.broker import queues_served

        return queues_served(self._broker_app(), patience=patience)

    def runs(self, **filters: Any) -> list[RunView]:
        """Runs, newest first: `agent`, `states`, `children`, `limit`."""
        return self.store.list_runs(**filters)

    def publish_event(self, key: str, payload: Any = None, *, scope: str = "") -> int:
        """Publish an outside fact. Every run that waits for it takes it. Returns how many were woken."""
        checked(key, "the key of the event"), checked(scope, "the scope of the event", empty=True)
        text = _values.encode(_values.ANYTHING, payload, what=f"the event {key!r}", cap=self.settings.max_payload)
        failpoint("event.before")
        woken = self.store.publish_event(key, scope, text)
        failpoint("event.after")
        for run in woken:
            publish_run(self.engine, run)
        return len(woken)


def _default_client() -> Any:
    settings = Settings()
    if settings.database_url is None:
        return None
    return _clients.setdefault(settings.database_url.get_secret_value(), Client(settings))


_clients: dict[str, Client] = {}

_handles.default_binding = _default_client

__all__ = ["Client", "Run"]
