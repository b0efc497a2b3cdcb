"""Signs of life: a session lock held by a connection, and a beat from a thread.

The lock goes with the process, however it dies; the beat stops with it, or with its host. Whoever was
declared dead while it was only frozen finds out at its next beat, takes a new name, and lets go of the calls
it no longer owns.
"""

from __future__ import annotations

import logging
import os
import threading

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from pickaxe.engine._claims import hold_on
from pickaxe.engine._doubt import doubt
from pickaxe.engine._engine import Engine, new_owner
from pickaxe.errors import PickaxeError

logger = logging.getLogger("pickaxe.liveness")


class Liveness:
    """Keeps this process known to the fleet, from `start` to `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock_holder: Connection | None = None
        self._strays: set[str] = set()

    def start(self) -> None:
        """Register, and beat from now on. While Postgres is away, both are tried again by the thread."""
        try:
            self._register()
        except (PickaxeError, DBAPIError) as error:
            logger.warning("this process is not registered yet: %s", error)
        self._thread = threading.Thread(target=self._run, name="pickaxe-beat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave in good order."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        try:
            self._engine.store.end_worker(self._engine.owner, "stopped")
        except (PickaxeError, DBAPIError) as error:
            logger.warning("could not sign off, the fleet will notice: %s", error)
        self._let_go()

    def _run(self) -> None:
        while not self._stop.wait(self._engine.settings.beat_every):
            try:
                self._beat()
            except Exception as error:
                expected = isinstance(error, PickaxeError | DBAPIError)
                logger.warning("no beat: %s", error, exc_info=not expected)
                self._let_go()

    def _beat(self) -> None:
        owned = self._engine.store.beat(self._engine.owner, silent=1.5 * self._engine.settings.beat_every)
        if owned is None:
            logger.warning("this process was declared dead and is not: it takes a new name")
            self._let_go()
            self._engine.owner = new_owner()
            self._register()
            owned = []
        elif self._lock_holder is None:
            self._lock_holder = self._engine.store.lock(self._slot)
        else:
            # The beat goes over any connection. This one may have been lost unnoticed, and its lock with it.
            self._engine.store.holds(self._lock_holder)
        for token, attempt in self._engine.running.snapshot().items():
            # A call that was claimed after the beat's snapshot is not in `owned` yet: ask twice.
            if token not in owned and attempt.missed() and not hold_on(self._engine, attempt.claim, attempt.owner):
                attempt.unwanted()
        self._give_back_strays(self._engine.running.strays(owned))

    def _give_back_strays(self, strays: set[str]) -> None:
        """Calls that this process owns and does not run: the answer to a claim, or an outcome, never got through.

        Nobody else may touch them while this process lives. One that is just ending looks like that too: ask twice.
        Whether its body has begun, this process knows: only then can one that may run once be in doubt.
        """
        for token in strays & self._strays:
            if (lost := self._engine.running.begun(token)) is not None:
                doubt(lost, "its outcome could not be recorded")
            elif self._engine.store.give_back(token, self._engine.owner):
                logger.warning("%s: this process owns it and does not run it: it is issued again", token)
        self._strays = strays

    def _register(self) -> None:
        engine = self._engine
        handles = [*engine.agents, *engine.tools]
        self._slot = engine.store.register_worker(
            engine.owner, name=engine.host, pid=os.getpid(), handles=handles, family=engine.family
        )
        self._lock_holder = engine.store.lock(self._slot)

    def _let_go(self) -> None:
        holder, self._lock_holder = self._lock_holder, None
        if holder is not None:
            try:
                holder.close()
            except DBAPIError as error:
                logger.debug("closing a lost connection: %s", error)
