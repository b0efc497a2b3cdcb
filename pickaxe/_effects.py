"""What becomes of a tool's effect when nobody knows whether it happened: the policy each tool declares."""

from __future__ import annotations

import uuid
from enum import StrEnum

from pickaxe.errors import ConfigurationError


class Effect(StrEnum):
    """How a tool's effect may be repeated.

    `IDEMPOTENT` (the default): at least once. A call whose worker died runs again, with the same idempotency key.
    `AT_MOST_ONCE`: never twice by itself. A call whose end nobody saw has an *unknown* outcome, which its tool's
    `reconcile`, or else a person, resolves. `TRANSACTIONAL`: exactly once. The tool works on a connection to
    Pickaxe's own database, and what it does there is committed together with its result.
    """

    IDEMPOTENT = "idempotent"
    AT_MOST_ONCE = "at_most_once"
    TRANSACTIONAL = "transactional"

    @classmethod
    def of(cls, value: object, what: str) -> Effect:
        """The policy of this name. Raises `ConfigurationError`, which lists the choices."""
        try:
            return cls(str(value))
        except ValueError:
            choices = ", ".join(repr(str(choice)) for choice in cls)
            raise ConfigurationError(
                f"{what}: effect={value!r} is no effect policy; the choices are {choices}"
            ) from None


def idempotency_key(run: uuid.UUID, step: str) -> str:
    """What names a call to the service it calls: the same for all of its attempts, and for no other call.

    A fork is a run of its own, so its calls differ from those it was forked from by the run's id.
    """
    return f"{run}/{step}"
