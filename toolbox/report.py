"""Write the report, in Markdown."""

from __future__ import annotations

from integrations.scripted_model import Comparison, Finding
from pickaxe import tool


@tool(retries=2, timeout="20s")
def write_report(question: str, comparison: Comparison, findings: list[Finding], verdict: str) -> str:
    """The answer, the table behind it, and the wording it rests on."""
    parts = [
        f"# {question}",
        _answer(comparison),
        "## By document",
        _table(comparison, findings),
        "## In their own words",
        "\n".join(_quotes(comparison, findings)),
        f"*{verdict} Read by rules, not by a lawyer: no legal advice.*",
    ]
    return "\n\n".join(parts) + "\n"


def _answer(comparison: Comparison) -> str:
    wanted = "; ".join(f"{topic}: {' or '.join(answers)}" for topic, answers in comparison.wanted.items())
    names = ", ".join(f"**{name}**" for name in comparison.suitable) or "none of them"
    return f"On every point ({wanted}): {names}."


def _table(comparison: Comparison, findings: list[Finding]) -> str:
    topics = list(comparison.wanted)
    answers = {(finding.document, finding.topic): finding.answer for finding in findings}
    rows = [topics, ["---"] * len(topics)]
    documents = sorted({finding.document for finding in findings})
    rows += [[answers.get((document, topic), "?") for topic in topics] for document in documents]
    heads = ["document", "---", *documents]
    return "\n".join(f"| {' | '.join([head, *row])} |" for head, row in zip(heads, rows, strict=True))


def _quotes(comparison: Comparison, findings: list[Finding]) -> list[str]:
    return [
        f"- **{finding.document}**, {finding.topic}: “{_shortened(finding.quote)}”"
        for finding in findings
        if finding.document in comparison.suitable and finding.quote
    ]


def _shortened(quote: str, most: int = 240) -> str:
    return quote if len(quote) <= most else quote[:most].rsplit(" ", 1)[0] + " …"
