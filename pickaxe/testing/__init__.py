"""Agents without services: their log in memory, their time virtual, their tools replaced.

```python
from pickaxe.testing import simulate

def test_a_report_waits_for_its_review():
    ran = simulate(
        research, "who?",
        tools={search: lambda query, limit: ["a hit"]},
        signals=[("3d", "review", {"ok": True})],
    )
    assert ran.result().approved
    assert [step.key for step in ran.steps] == ["search#1", "review#1"]
```

`FakeProvider` is a provider of models on this machine, for whatever calls models through an SDK.
"""

from pickaxe.testing._deaths import dies
from pickaxe.testing._rows import Step
from pickaxe.testing._simulation import Simulation, SimulationError, simulate
from pickaxe.testing._tools import takes
from pickaxe.testing.providers import ErrorReply, FakeProvider, RawReply, Received, Reply

__all__ = [
    "ErrorReply",
    "FakeProvider",
    "RawReply",
    "Received",
    "Reply",
    "Simulation",
    "SimulationError",
    "Step",
    "dies",
    "simulate",
    "takes",
]
