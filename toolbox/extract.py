"""Have the model extract from one document what it says on some topics."""

from __future__ import annotations

from integrations.library import Library, open_library
from integrations.scripted_model import Finding, ScriptedModel, open_model
from pickaxe import Context, inject, tool


@tool(queue="models", retries=2, timeout="30s")
def extract(
    document: str,
    topics: list[str],
    ctx: Context = inject(),
    library: Library = inject(open_library),
    model: ScriptedModel = inject(open_model),
) -> list[Finding]:
    """One finding per topic. Tells how far it is, and stops when nobody wants the answer any more."""
    findings: list[Finding] = []
    sentences = library.sentences(document)
    ctx.progress(f"read {len(sentences)} sentences")
    for finding in model.extract(document, sentences, topics):
        findings.append(finding)
        if not ctx.progress(f"{finding.topic}: {finding.answer}"):
            break
    return findings
