"""The fleet's tools, integrations and agents as plain functions: no service, no worker."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import pytest

from integrations.library import Library, normalised, open_library
from integrations.scripted_model import Finding, ScriptedModel
from tasks.check import check
from toolbox.compare import compare
from toolbox.documents import is_verbatim, read, search
from toolbox.extract import extract
from toolbox.plan import plan
from toolbox.report import write_report

ROOT = Path(__file__).parents[2]
TOPICS = ["patents", "copyleft", "notices", "network use"]
MODEL = ScriptedModel()


def answers(document: str) -> dict[str, str]:
    return {finding.topic: finding.answer for finding in extract(document, TOPICS, model=MODEL)}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("Apache-2.0", ["granted", "none", "keep", "free"]),
        ("AGPL-3.0", ["granted", "whole work", "keep", "publish source"]),
        ("GPL-3.0", ["granted", "whole work", "keep", "free"]),
        ("LGPL-2.1", ["implied", "library", "keep", "free"]),
        ("MPL-2.0", ["granted", "file", "keep", "free"]),
        ("EPL-2.0", ["granted", "file", "keep", "free"]),
        ("OSL-3.0", ["granted", "whole work", "keep", "publish source"]),
        ("MIT", ["silent", "none", "keep", "free"]),
        ("CC0-1.0", ["excluded", "none", "nothing", "free"]),
        ("Unlicense", ["silent", "none", "nothing", "free"]),
    ],
)
def test_what_a_licence_says_is_found_in_its_text(document: str, expected: list[str]) -> None:
    assert answers(document) == dict(zip(TOPICS, expected, strict=True))


def test_a_question_decides_what_is_looked_into() -> None:
    planned = plan("Do they grant patents, and what about a hosted service?", model=MODEL)
    assert planned.topics == ["patents", "network use"]
    assert plan("Tell me everything", model=MODEL).topics == TOPICS


def test_search_finds_the_documents_that_mention_a_term() -> None:
    names = [hit.document for hit in search(["patent"])]
    assert "Apache-2.0" in names
    assert "MIT" not in names


def test_every_quote_stands_in_its_document() -> None:
    for name in open_library().names():
        quotes = [f.quote for f in extract(name, TOPICS, model=MODEL) if f.quote]
        assert is_verbatim(name, quotes) == [True] * len(quotes)
        text = normalised(open_library().read(name))
        assert all(quote in text for quote in quotes)


def test_an_invented_quote_does_not_pass_the_check() -> None:
    true = Finding("MIT", "notices", "keep", open_library().sentences("MIT")[3])
    invented = Finding("MIT", "patents", "granted", "All patents are yours.")
    silent = Finding("ISC", "patents", "silent", "")
    assert asyncio.run(check([true, invented, silent])) == [true, silent]


def test_the_report_rests_on_the_findings() -> None:
    findings = [f for name in ("Apache-2.0", "GPL-3.0", "MIT") for f in extract(name, TOPICS, model=MODEL)]
    comparison = compare(findings, model=MODEL)
    report: str = write_report("Which?", comparison, findings, "Approved by Ada.")
    assert comparison.suitable == ["Apache-2.0"]
    assert "**Apache-2.0**." in report
    assert "| GPL-3.0 | granted | whole work | keep | free |" in report
    assert "Approved by Ada." in report


def test_a_document_outside_of_the_library_cannot_be_read(tmp_path: Path) -> None:
    library = Library(tmp_path)
    (tmp_path / "inside.txt").write_text("Some text. More text.")
    assert read("inside", library=library).sentences == 2
    with pytest.raises(LookupError, match="no document"):
        library.read("../../etc/passwd")


def test_the_documents_are_whole() -> None:
    texts = {path.stem: path.read_text("utf-8") for path in (ROOT / "documents").glob("*.txt")}
    assert len(texts) == 19
    assert sum(map(len, texts.values())) < 400_000
    assert texts["Apache-2.0"].lstrip().startswith("Apache License")
    assert texts["Apache-2.0"].rstrip().endswith("limitations under the License.")
    assert texts["GPL-3.0"].rstrip().endswith("<https://www.gnu.org/licenses/why-not-lgpl.html>.")
    assert texts["MPL-2.0"].rstrip().endswith("defined by the Mozilla Public License, v. 2.0.")


@pytest.mark.parametrize(("folder", "most"), [("tasks", 120), ("toolbox", 60)])
def test_what_users_own_is_short(folder: str, most: int) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= most, path


def test_integrations_do_not_know_pickaxe() -> None:
    for path in (ROOT / "integrations").glob("*.py"):
        assert "import pickaxe" not in path.read_text("utf-8")
        assert "from pickaxe" not in path.read_text("utf-8")


def test_every_tool_and_agent_says_what_it_does() -> None:
    from workers.app import app

    for handle in app.handles.values():
        assert inspect.getdoc(handle.fn), handle
