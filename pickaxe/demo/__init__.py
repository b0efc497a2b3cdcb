"""The demo: an agent that survives the kill of its worker, and the proof that nothing recorded ran twice."""

from pickaxe.demo._demo import Demo

__all__ = ["Demo"]
