"""Everything Pickaxe refuses or reports, as one tree.

```
PickaxeError
├── ConfigurationError            the project is put together wrongly
│   ├── DuplicateHandleError      two agents or tools under one name
│   └── UnboundHandleError        a handle was enqueued, but no app and no database is known
├── ValidationError               a value does not fit where it was given
│   ├── InputError                wrong arguments for an agent or tool
│   ├── OutputError               a body returned something else than it promised
│   └── PayloadError              a value that cannot be stored as JSON, or is too large
├── ServiceUnavailableError       Postgres or Redis cannot be reached
│   └── SchemaError               the database's tables are older or newer than this Pickaxe
├── NotFoundError                 no run, step or handle of that name
├── RunError                      how a run ended, when it did not end well
│   ├── RunFailedError
│   ├── RunCancelledError
│   ├── RunPausedError            parked for a person: its code no longer fits its log
│   └── ResultTimeoutError        `result(timeout=…)` gave up waiting; the run goes on
├── StepError                     how a step ended, raised inside the agent that awaited it
│   ├── ToolError                 a tool's body raised, and its retries are used up
│   ├── ChildRunError             a child run failed, was cancelled or timed out
│   ├── StepTimeoutError          (also a `TimeoutError`)
│   └── QuorumError               a `gather` can no longer reach its quorum
├── RunTimeoutError               what is recorded of a run that did not end within its agent's `timeout`
├── ResolveError                  a step that was set aside cannot be resolved like that
├── TransactionError              a transactional tool ended its own transaction, or broke it
├── ImpureAgentError              an agent did I/O, started a thread, or blocked
└── MismatchError                 the agent's code asked for something else than its log holds

Raised by a tool's own body to say what should happen next:

├── RetryLater                    try again, after so many seconds
└── NonRetryableError             never try again

Raised by an `at_most_once` tool's `reconcile`, when it has no result to return:

├── DidNotHappen                  the effect certainly did not happen: the tool may run again
├── StillUnknown                  ask again, after so many seconds
└── NonRetryableError             the call has failed
```

Every message says what was wrong, where, which value, and what to do.
"""

from __future__ import annotations

from typing import Any


class PickaxeError(Exception):
    """The root of every error Pickaxe raises."""


class ConfigurationError(PickaxeError):
    """The project is put together wrongly; nothing was started."""


class DuplicateHandleError(ConfigurationError):
    """Two agents or tools carry the same name."""


class UnboundHandleError(ConfigurationError):
    """A handle was used on the fleet, but it belongs to no `Pickaxe` app here."""


class ValidationError(PickaxeError):
    """A value does not fit where it was given."""


class InputError(ValidationError):
    """The arguments of an agent or tool do not fit its signature."""


class OutputError(ValidationError):
    """A body returned something else than its annotation promises."""


class PayloadError(ValidationError):
    """A value cannot be stored: it is not JSON, or larger than the cap."""


class ServiceUnavailableError(PickaxeError):
    """Postgres or Redis cannot be reached. Nothing already accepted is lost."""


class SchemaError(ServiceUnavailableError):
    """The database's schema is outside of the range this Pickaxe works with."""


class NotFoundError(PickaxeError):
    """There is no run, step or handle of that name."""


class RunError(PickaxeError):
    """How a run ended, when it did not end well.

    `run_id` is the run; `error` the recorded error as a mapping with `type`, `message` and,
    where known, `traceback` and `where`: the line of the agent's code, as `"file.py:12 in function"`.
    """

    def __init__(self, message: str, *, run_id: str = "", error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.error = error or {}


class RunFailedError(RunError):
    """The agent raised."""


class RunCancelledError(RunError):
    """The run was cancelled."""


class RunPausedError(RunError):
    """The run is parked until a person decides: see `pickaxe show`, then `pickaxe retry`."""


class ResultTimeoutError(RunError, TimeoutError):
    """The run has not ended within the time given to `result`; it goes on."""


class RunTimeoutError(PickaxeError, TimeoutError):
    """A run did not end within its agent's `timeout`."""


class StepError(PickaxeError):
    """How a step ended, raised inside the agent that awaited it.

    `step` is the step's key, `type` the name of the original exception's class, `error` all that
    was recorded of it, as in `RunError`; `where` is a line of the tool's code.
    """

    def __init__(self, message: str, *, step: str = "", error: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.error = error or {}

    @property
    def type(self) -> str:
        """The class name of the exception that the body raised, such as `"ValueError"`."""
        return str(self.error.get("type", ""))


class ToolError(StepError):
    """A tool's body raised, and its retries are used up."""


class ChildRunError(StepError):
    """A child run failed, was cancelled, or ran out of time."""


class StepTimeoutError(StepError, TimeoutError):
    """A step did not start, or did not end, within its time."""


class QuorumError(StepError):
    """Too many of a `gather`'s calls failed for its quorum to be reached."""


class ResolveError(PickaxeError):
    """A step cannot be resolved like that: it is not set aside, or it changed meanwhile."""


class TransactionError(PickaxeError):
    """A transactional tool ended its transaction by itself, or broke it. Pickaxe commits it with the result."""


class ImpureAgentError(PickaxeError):
    """An agent did I/O, started a thread, or blocked. Move that line into a tool."""


class MismatchError(PickaxeError):
    """The agent's code asked for something else than its log holds.

    `key` is the step; `recorded` and `asked` describe both sides.
    """

    def __init__(self, key: str, recorded: str, asked: str) -> None:
        super().__init__(
            f"step {key!r} no longer matches the run's log: recorded {recorded}, but the code now asks for "
            f"{asked}. The run is paused and nothing was changed: deploy the code it was started with, or "
            f"restore the call, then `pickaxe retry RUN`."
        )
        self.key, self.recorded, self.asked = key, recorded, asked


class RetryLater(PickaxeError):  # noqa: N818 - an instruction a tool raises, not a fault
    """Raised by a tool: try this call again, `after` seconds from now (default: the tool's own backoff).

    It uses up one attempt, like any failure.
    """

    def __init__(self, message: str = "the tool asked to be retried", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class NonRetryableError(PickaxeError):
    """Raised by a tool: this call can never succeed, do not retry it."""


class DidNotHappen(PickaxeError):  # noqa: N818 - an answer, not a fault
    """Raised by a `reconcile`: the effect certainly did not happen. The tool may run again."""


class StillUnknown(PickaxeError):  # noqa: N818 - an answer, not a fault
    """Raised by a `reconcile`: ask again, `after` seconds from now (default: later every time)."""

    def __init__(self, message: str = "it cannot be known yet", *, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after
