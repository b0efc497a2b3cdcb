"""The Celery configuration that Pickaxe's promises are measured with.

`configure(app, celery_config(...))` makes them an app's defaults: whatever the user says, by
`app.config_from_object`, `app.conf` or `overrides`, wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

from pickaxe.errors import ConfigurationError

#: Redis knows a few priorities, one list per queue and step; 0 is served first. With these steps Pickaxe's
#: priorities 9-6 are high, 5-2 normal and 1-0 low, and the default of 5 is normal.
DEFAULT_PRIORITY_STEPS = (0, 4, 8)

#: Prefix of the keys that chords leave in the result backend's Redis.
RESULT_KEY_PREFIX = "pickaxe:chord:"

#: No broker command takes longer than this, so a frozen Redis costs seconds and not a worker.
SOCKET_TIMEOUT = 3.0

_RESULT_SCHEMES = frozenset({"redis", "rediss", "unix", "redis+socket", "socket"})
_RETRY_POLICY = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.5}


def celery_config(
    broker_url: str,
    result_url: str | None = None,
    *,
    priority_steps: Sequence[int] = DEFAULT_PRIORITY_STEPS,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Celery settings for a broker and, if chords are wanted, a Redis to keep their counters in.

    `overrides` are plain Celery settings and win; those that are mappings, such as
    `broker_transport_options`, are merged key by key.
    """
    config = {
        "broker_url": broker_url,
        "broker_transport_options": _transport_options(broker_url, priority_steps),
        **_BROKER,
        **_TASKS,
        **_WORKER,
    }
    if result_url is not None:
        config |= _result_config(result_url)
    for name, value in (overrides or {}).items():
        mine = config.get(name)
        both = isinstance(mine, dict) and isinstance(value, Mapping)
        config[name] = {**mine, **value} if both else value  # type: ignore[dict-item]
    return deepcopy(config)


def configure(app: Any, config: Mapping[str, Any]) -> None:
    """Make `config` the app's defaults, beneath whatever its user configures, before or after.

    Not by `app.add_defaults`: those beat `app.config_from_object`, and are gone if that is called late.
    """

    def add(source: Any, **_: Any) -> None:
        place = len(source.maps) - 1  # Celery's own defaults are last
        source.maps.insert(place, deepcopy(dict(config)))
        for name, value in config.items():
            given = next((layer[name] for layer in source.maps[:place] if name in layer), None)
            if isinstance(value, Mapping) and isinstance(given, Mapping):
                source[name] = {**value, **given}

    app.on_after_configure.connect(add, weak=False)
    if app.configured:
        add(app.conf)


_BROKER: dict[str, Any] = {
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,  # a worker waits for its broker for as long as it takes
    "broker_pool_limit": 10,  # without a pool a publisher manages 200-400 messages a second
    "task_publish_retry_policy": _RETRY_POLICY,
}

_TASKS: dict[str, Any] = {
    "accept_content": ["json"],
    "task_serializer": "json",
    "result_serializer": "json",
    "event_serializer": "json",
    "task_ignore_result": True,  # results live in the step log
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,  # attempts are counted in Postgres, so this cannot loop
    "task_create_missing_queues": True,
    "task_send_sent_event": False,
    "result_expires": 3600,
    "result_chord_expires": 86400,  # a gather may well take longer than a result is kept
}

_WORKER: dict[str, Any] = {
    "worker_consumer": "pickaxe.broker:Consumer",
    "worker_prefetch_multiplier": 1,
    "worker_disable_rate_limits": True,  # Celery's are per process; Pickaxe's are fleet-wide
    "worker_send_task_events": True,
    "worker_soft_shutdown_timeout": 15.0,
    "worker_enable_soft_shutdown_on_idle": True,
    # Let it commit: a duplicate finds its step taken. Cancelling would throw the work away.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
}


def _transport_options(broker_url: str, priority_steps: Sequence[int]) -> dict[str, Any]:
    steps = list(priority_steps)
    if steps[:1] != [0] or steps != sorted(set(steps)) or steps[-1] > 9:
        raise ConfigurationError(
            f"priority_steps is {steps}: give ascending steps between 0 and 9 that start with 0, such as [0, 4, 8]"
        )
    if not is_redis(broker_url):
        return {}
    return {
        # Only how long a killed worker's messages are out of sight; the sweeper does not wait for it.
        "visibility_timeout": 1800,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 30,
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": SOCKET_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "priority_steps": steps,
        "queue_order_strategy": "round_robin",
        # For a publisher's first connection, which would otherwise try for seconds; consumers have their own.
        **_RETRY_POLICY,
        "max_retries": 0,
    }


def _result_config(result_url: str) -> dict[str, Any]:
    scheme = urlsplit(result_url).scheme
    if scheme not in _RESULT_SCHEMES:
        raise ConfigurationError(
            f"the result backend has the scheme {scheme!r}: chords are kept in Redis only; "
            f"give a redis:// URL, or none to go without chords"
        )
    return {
        "result_backend": result_url,
        "result_backend_transport_options": {
            "global_keyprefix": RESULT_KEY_PREFIX,
            "retry_policy": {**_RETRY_POLICY, "max_retries": 1},
        },
        "redis_socket_timeout": SOCKET_TIMEOUT,
        "redis_socket_connect_timeout": SOCKET_TIMEOUT,
        "redis_socket_keepalive": not scheme.endswith(("unix", "socket")),
        "redis_backend_health_check_interval": 10,
    }


def is_redis(url: str) -> bool:
    """Whether a broker URL leads to Redis."""
    return urlsplit(url).scheme in {"redis", "rediss", "redis+socket", "sentinel"}
