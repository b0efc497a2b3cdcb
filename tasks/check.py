"""Pattern: a child run. Trust nothing a model says: every quote is looked up in its document."""

from __future__ import annotations

from integrations.scripted_model import Finding
from pickaxe import agent, gather
from toolbox.documents import is_verbatim


@agent
async def check(findings: list[Finding]) -> list[Finding]:
    """The findings whose quotes stand in their documents word for word, and those that claim no wording."""
    by_document: dict[str, list[Finding]] = {}
    for finding in findings:
        by_document.setdefault(finding.document, []).append(finding)
    answers = await gather(
        *(is_verbatim(document, [finding.quote for finding in own]) for document, own in by_document.items()),
        limit=6,
    )
    return [
        finding
        for own, found in zip(by_document.values(), answers, strict=True)
        for finding, stands in zip(own, found, strict=True)
        if stands or not finding.quote
    ]
