"""Transactional tools: a body that is run in the transaction in which its result is recorded."""

from __future__ import annotations

import logging

from pickaxe import _values
from pickaxe._failpoints import failpoint
from pickaxe._states import StepState
from pickaxe.engine import _attempts
from pickaxe.engine._claims import Attempt
from pickaxe.engine._dispatch import publish_run
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import Outcome, Settled, ToolTransaction

logger = logging.getLogger("pickaxe.effects")


def transaction_name(owner: str, token: str) -> str:
    """What an attempt's transaction is called in `pg_stat_activity`: at most 63 characters, the owner among them."""
    return f"pickaxe {owner} {_values.digest(_values.dump(token))}"


def in_transaction(attempt: Attempt) -> tuple[Outcome | None, Settled | None]:
    """Run a transactional tool, in this thread. Its result is recorded with its effect; anything else is not yet.

    Returns its outcome, None if it is to be tried again, and what recording that did.
    """
    transaction: ToolTransaction | None = None
    output: str | None = None
    try:
        with attempt.engine.store.tool_transaction(transaction_name(attempt.owner, attempt.token)) as transaction:
            output = _body(attempt, transaction)
            settled = _record(attempt, transaction, output)
    except BaseException as error:
        if _is_the_connections(transaction, error, recording=output is not None):
            _once_more(attempt, error, committed=transaction is not None and transaction.ending)
            return None, None
        violation = transaction.violation if transaction is not None and isinstance(error, Exception) else None
        if output is not None and violation is None and not ToolTransaction.is_the_tools(error):
            raise  # nothing was recorded, and the next beats find that this process owns a call that it does not run
        return _attempts.raised(attempt, violation or error), None
    outcome = Outcome(attempt.claim, attempt.owner, StepState.SUCCEEDED, output, None, attempt.claim.clock())
    _attempts.told(attempt.engine, outcome, settled)
    return outcome, settled


def _body(attempt: Attempt, transaction: ToolTransaction) -> str:
    wanted = attempt.spec.signature.connection
    assert wanted is not None
    attempt.given = {wanted[0]: transaction.give(wanted[1])}
    value = _attempts.run_sync(attempt)
    return attempt.spec.signature.encode_output(value, cap=attempt.engine.settings.max_payload)


def _record(attempt: Attempt, transaction: ToolTransaction, output: str) -> Settled:
    claim = attempt.claim
    failpoint("settle.before")
    settled = transaction.settle(
        claim.run, claim.key, attempt=claim.attempt, owner=attempt.owner, output=output,
        redispatch=attempt.engine.store.redispatch,
    )  # fmt: skip
    failpoint("settle.after")
    if settled.accepted:
        failpoint("transaction.before")
        transaction.commit()
        failpoint("transaction.after")
    return settled


def _is_the_connections(transaction: ToolTransaction | None, error: BaseException, *, recording: bool) -> bool:
    """Whether the attempt ended for want of a connection, or of the database's patience; not by the tool's doing."""
    if transaction is None:
        return isinstance(error, ServiceUnavailableError)
    return transaction.lost or (recording and transaction.is_conflict(error))


def _once_more(attempt: Attempt, error: BaseException, *, committed: bool) -> None:
    """Nothing has happened, so it costs no try. Or it was committed, and only the answer to that was lost."""
    claim, engine = attempt.claim, attempt.engine
    wait = min(60.0, max(0.5, claim.deaths**2))
    logger.warning("%s: lost its transaction: %s", attempt.token, error)
    failpoint("retry.before")
    # It waits for whatever the server is still doing to the row: afterwards the outcome is certain.
    given_back = _attempts.insist(engine, attempt.token, lambda: engine.store.retry_step(
        claim, attempt.owner, wait=wait, spared=1, error=None, history=claim.history,
        reason=f"attempt {claim.attempt} lost its connection to the database, and nothing of it was committed",
    ))  # fmt: skip
    failpoint("retry.after")
    if given_back:
        engine.nudge(wait)
    elif committed:
        publish_run(engine, claim.run)
