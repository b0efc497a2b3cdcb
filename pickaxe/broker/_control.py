"""Asking the workers that are there."""

from __future__ import annotations

import warnings
from typing import Any

from celery.app.control import DuplicateNodenameWarning

from pickaxe.broker._publish import BROKER_ERRORS
from pickaxe.errors import ServiceUnavailableError


def queues_served(app: Any, *, patience: float) -> dict[str, set[str]]:
    """The workers that answer within `patience` seconds, by name, and the queues that each takes from.

    Of several workers with one name only one is heard. Raises `ServiceUnavailableError`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DuplicateNodenameWarning)
            answers = app.control.inspect(timeout=patience).active_queues() or {}
    except BROKER_ERRORS as error:
        raise ServiceUnavailableError(
            f"the workers cannot be asked, for the broker is away ({error}): check PICKAXE_REDIS_URL and, if it is "
            f"set, PICKAXE_BROKER_URL"
        ) from error
    return {worker: {queue["name"] for queue in queues} for worker, queues in answers.items()}
