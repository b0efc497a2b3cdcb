"""Workers of one name: nobody who looks at the fleet can tell them apart, and a command to one may reach another."""

from __future__ import annotations

import logging
from collections import defaultdict

from sqlalchemy.exc import DBAPIError

from pickaxe.engine._engine import Engine
from pickaxe.errors import PickaxeError
from pickaxe.store import Store

logger = logging.getLogger("pickaxe.liveness")

CONSEQUENCE = "Flower, `celery inspect` and `pickaxe show` cannot tell them apart"
ADVICE = "give each worker a name of its own, such as -n web-1@%h"


def namesakes(store: Store, *, vanished: float) -> dict[str, list[list[int]]]:
    """The names that several living workers have, and the processes of each of these.

    A process that was silent for `vanished` seconds does not live.
    """
    found: dict[str, list[list[int]]] = defaultdict(list)
    for worker in store.living_workers(vanished=vanished):
        found[worker.name].append(worker.pids)
    return {name: workers for name, workers in found.items() if len(workers) > 1}


def warn_of_namesakes(engine: Engine) -> None:
    """Say in the log of a worker that has just started that another has its name."""
    try:
        living = engine.store.living_workers(vanished=engine.settings.vanished_after)
    except (PickaxeError, DBAPIError) as error:
        logger.info("whether another worker has this one's name is not known: %s", error)
        return
    for other in living:
        if other.name == engine.host and other.family != engine.family:
            pids = ", ".join(map(str, other.pids))
            logger.warning("a worker named %s runs already (process %s): %s; %s", other.name, pids, CONSEQUENCE, ADVICE)
