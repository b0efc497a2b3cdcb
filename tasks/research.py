"""Pattern: scatter and gather, then a person decides. Research a question in a folder of documents."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel, Field

from pickaxe import agent, errors, gather, set_state, wait_for_signal
from tasks.check import check
from toolbox.compare import compare
from toolbox.documents import read, search
from toolbox.extract import extract
from toolbox.plan import plan
from toolbox.report import write_report

REVIEW_WITHIN = 3 * 24 * 3600
"""Seconds a person has to review. A waiting run holds no process, no thread and no message."""


class Question(BaseModel):
    """What to research. `pause` is how many seconds the result rests before a person is asked."""

    text: str = Field(min_length=3)
    pause: float = Field(2.0, ge=0)


class Verdict(BaseModel):
    """A person's answer, sent as the signal `review`."""

    approved: bool
    reviewer: str = "somebody"
    comment: str = ""


class Report(BaseModel):
    """What came of it."""

    approved: bool
    suitable: list[str]
    documents: int
    sentences: int
    markdown: str


@agent
async def research(question: Question) -> Report:
    """Plan, search, read, extract, check, compare, rest, have it reviewed, report."""
    set_state("planning")
    planned = await plan(question.text)
    hits = await search(planned.terms)
    names = [hit.document for hit in hits]

    set_state(f"reading {len(names)} documents")
    outlines = await gather(*(read(name) for name in names), limit=8)
    extracted = await gather(*(extract(name, planned.topics) for name in names))

    set_state("checking and comparing")
    findings = await check([finding for of_one in extracted for finding in of_one])
    comparison = await compare(findings)
    await asyncio.sleep(question.pause)

    set_state("waiting for the signal 'review'")
    verdict = await reviewed()

    set_state("writing the report")
    words = f"{'Approved' if verdict.approved else 'Not approved'} by {verdict.reviewer}. {verdict.comment}".strip()
    return Report(
        approved=verdict.approved,
        suitable=comparison.suitable,
        documents=len(outlines),
        sentences=sum(outline.sentences for outline in outlines),
        markdown=await write_report(question.text, comparison, findings, words),
    )


async def reviewed() -> Verdict:
    """A person's verdict, or that nobody came."""
    try:
        async with asyncio.timeout(REVIEW_WITHIN):
            while True:
                try:
                    return await wait_for_signal("review", Verdict)
                except errors.ValidationError as error:
                    set_state({"waiting": "for a review", "refused": str(error)})  # a slip costs nobody the run
    except TimeoutError:
        return Verdict(approved=False, reviewer="nobody", comment="Nobody reviewed it in time.")
