"""A client that says all that a client can say, in a process of its own that may be killed on the way.

Everything has an idempotency key or is guarded by itself, so that another client may say it all again.
"""

from __future__ import annotations

import os
from typing import Any

from pickaxe import Settings
from pickaxe.authoring._handles import EnqueueOptions
from pickaxe.client import Client, Run
from tests.faults.app import endless, kid, told

ANSWER, NEWS = 5, 7
TOLD = [ANSWER, NEWS, 2]


def main() -> None:
    settings = Settings(_env_file=None)  # type: ignore[call-arg]
    client = Client(settings)
    enqueue(client, kid, 4)
    run = enqueue(client, told, 1)
    run.signal("answer", ANSWER, idempotency_key="the answer")
    client.publish_event("news", NEWS)
    enqueue(client, endless).cancel("by the client")
    client.run(os.environ["PICKAXE_TEST_PAUSED"]).retry()
    client.close()


def enqueue(client: Client, agent: Any, *args: Any) -> Run[Any]:
    """The run of this agent: whoever enqueues it again gets the same."""
    [run] = client.enqueue(agent, [(args, {})], [EnqueueOptions(idempotency_key="the only one")])
    return run
