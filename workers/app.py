"""The fleet: `celery -A workers.app worker -Q agents,tools,models`, or `pickaxe worker`."""

from __future__ import annotations

from pickaxe import Pickaxe, Queue
from tasks.check import check
from tasks.research import research
from toolbox.compare import compare
from toolbox.documents import is_verbatim, read, search
from toolbox.extract import extract
from toolbox.plan import plan
from toolbox.report import write_report

app = Pickaxe(
    "fleet",
    agents=[research, check],
    tools=[plan, search, read, extract, is_verbatim, compare, write_report],
    # What the model's provider allows, for all workers together. Waiting for it holds no process.
    queues=[Queue("models", rate_limit="6/s")],
)
