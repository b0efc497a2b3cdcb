"""The README's example, put together and run."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

from pickaxe.cli._runs import _arguments

README = (Path(__file__).parents[2] / "README.md").read_text()

MODELS = """
from pydantic import BaseModel
class Question(BaseModel): text: str
class Hit(BaseModel): title: str
class Plan(BaseModel): queries: list[str]
class Verdict(BaseModel): ok: bool
class Report(BaseModel): text: str
"""
BODIES = """
@tool
def plan_searches(question: Question) -> Plan: return Plan(queries=[question.text, "more"])
@tool
def write_report(hits: list[list[Hit]], verdict: Verdict) -> Report: return Report(text=f"{len(hits)} {verdict.ok}")
"""


def test_the_readmes_agent_and_its_test_work_as_they_stand():
    write, test = re.findall(r"```python\n(# toolbox.*?|from pickaxe\.testing.*?)```", README, re.DOTALL)
    write = write.replace("-> list[Hit]: ...", "-> list[Hit]: return [Hit(title=query)]")
    module = types.ModuleType("readme_example")
    sys.modules[module.__name__] = module  # annotations are looked up there
    try:
        tools, rest = write.split("# tasks/research.py")
        exec(MODELS + tools + BODIES + rest + test, module.__dict__)
        module.test_a_report_is_written_after_three_days_of_waiting()
        assert module.app.handles.keys() == {"research", "plan_searches", "search", "write_report"}
        command = re.search(r"^\$ pickaxe run research '(.*?)'", README, re.MULTILINE)
        assert command
        args, kwargs = _arguments(module.research, command[1])
        assert json.loads(module.research.spec.signature.encode_input(tuple(args), kwargs, cap=1024))
    finally:
        del sys.modules[module.__name__]
