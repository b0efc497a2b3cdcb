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
    try:
        with attempt.engine.store.tool_transaction(transaction_name(attempt.owner, attempt.token)) as transaction:
            settled = _work(attempt, transaction)
    except BaseException as error:  # noqa: BLE001 - whatever a tool raises is its outcome, and is recorded
        if _is_the_connections(transaction, error):
            _once_more(attempt, error, committed=transaction is not None and transaction.ending)
            return None
        violation = transaction.violation if transaction is not None and isinstance(error, Exception) else None
        return _attempts.failed_or_leaving(attempt, violation or error, chord=chord)
    return _attempts.announce(attempt, StepState.SUCCEEDED, settled, chord=chord)


def _work(attempt: Attempt, transaction: ToolTransaction) -> Settled:
    engine, claim, wanted = attempt.engine, attempt.claim, attempt.spec.signature.connection
    assert wanted is not None
    attempt.given = {wanted[0]: transaction.give(wanted[1])}
    value = _attempts.run_sync(attempt)
    output = attempt.spec.signature.encode_output(value, cap=engine.settings.max_payload)
    failpoint("settle.before")
    settled = transaction.settle(
        claim.run, claim.key, attempt=claim.attempt, owner=attempt.owner, output=output,
        redispatch=engine.store.redispatch,
    )  # fmt: skip
    failpoint("settle.after")
    if settled.accepted:
        failpoint("transaction.before")
        transaction.commit()
        failpoint("transaction.after")
    return settled


def _is_the_connections(transaction: ToolTransaction | None, error: BaseException) -> bool:
    """Whether the attempt ended for want of a connection, not by the tool's doing."""
    if transaction is None:
        return isinstance(error, ServiceUnavailableError)
    return transaction.lost or (transaction.settling and transaction.is_conflict(error))


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
