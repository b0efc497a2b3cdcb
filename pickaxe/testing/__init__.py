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
"""

from pickaxe.testing._deaths import dies
from pickaxe.testing._rows import Step
from pickaxe.testing._simulation import Simulation, SimulationError, simulate
from pickaxe.testing._tools import takes

__all__ = ["Simulation", "SimulationError", "Step", "dies", "simulate", "takes"]
