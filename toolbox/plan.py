"""Ask the model how to go about a question."""

from __future__ import annotations

from integrations.scripted_model import Plan, ScriptedModel, open_model
from pickaxe import inject, tool


@tool(queue="models", retries=2, timeout="30s")
def plan(question: str, model: ScriptedModel = inject(open_model)) -> Plan:
    """The topics to look into, and the words to search for."""
    return model.plan(question)
