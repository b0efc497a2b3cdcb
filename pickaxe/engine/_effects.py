"""Running an attempt as its tool's effect policy wants it: by itself, or in a transaction with its result."""

from __future__ import annotations

import logging

from pickaxe import _values
from pickaxe._effects import Effect
from pickaxe._failpoints import failpoint
from pickaxe._states import StepState
from pickaxe.engine import _attempts
from pickaxe.engine._claims import Attempt
from pickaxe.engine._dispatch import publish_run
from pickaxe.errors import ServiceUnavailableError
from pickaxe.store import Settled, ToolTransaction

logger = logging.getLogger("pickaxe.effects")


def perform(attempt: Attempt, *, chord: bool = False) -> Settled | None:
    """Run and record, in this thread."""
    if attempt.spec.effect is not Effect.TRANSACTIONAL:
        return _attempts.perform(attempt, chord=chord)
    try:
        return _in_transaction(attempt, chord=chord)
    finally:
        attempt.engine.running.remove(attempt.token)


def transaction_name(owner: str, token: str) -> str:
    """What an attempt's transaction is called in `pg_stat_activity`: at most 63 characters, the owner among them."""
    return f"pickaxe {owner} {_values.digest(_values.dump(token))}"


def _in_transaction(attempt: Attempt, *, chord: bool) -> Settled | None:
    transaction: ToolTransaction | None = None
    output: str | None = None
    try:
        with attempt.engine.store.tool_transaction(transaction_name(attempt.owner, attempt.token)) as transaction:
            output = _body(attempt, transaction)
            settled = _record(attempt, transaction, output)
    except BaseException as error:
        if _is_the_connections(transaction, error, recording=output is not None):
            _once_more(attempt, error, committed=transaction is not None and transaction.ending)
            return None
        violation = transaction.violation if transaction is not None and isinstance(error, Exception) else None
        if output is not None and violation is None and not ToolTransaction.is_the_tools(error):
            raise  # nothing was recorded, and the next beats find that this process owns a call that it does not run
        return _attempts.failed_or_leaving(attempt, violation or error, chord=chord)
    return _attempts.announce(attempt, StepState.SUCCEEDED, settled, chord=chord)


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
    given_back = _attempts.insist(attempt, lambda: engine.store.retry_step(
        claim, attempt.owner, wait=wait, spared=1, error=None, history=claim.history,
        reason=f"attempt {claim.attempt} lost its connection to the database, and nothing of it was committed",
    ))  # fmt: skip
    failpoint("retry.after")
    if given_back:
        engine.nudge(wait)
    elif committed:
        publish_run(engine, claim.run)
