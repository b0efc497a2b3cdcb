"""Have the model put all findings side by side."""

from __future__ import annotations

from integrations.scripted_model import Comparison, Finding, ScriptedModel, open_model
from pickaxe import inject, tool


@tool(queue="models", retries=2, timeout="30s")
def compare(findings: list[Finding], model: ScriptedModel = inject(open_model)) -> Comparison:
    """Which documents answer what, and which suit on every topic."""
    return model.compare(findings)
