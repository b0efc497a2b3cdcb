"""What the documents say is there, is there."""

from __future__ import annotations

import ast
import gc
import re
from pathlib import Path

import pytest

import pickaxe
from pickaxe._states import RUN_TRANSITIONS, STEP_TRANSITIONS
from tests.unit.sources import parsed

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if not target.startswith("https://"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_readmes_python_uses_names_that_exist():
    for block in blocks((ROOT / "README.md").read_text(), "python"):
        tree = parsed(block.replace("for transition in run.stream(): ...", "for _ in run.stream(): pass"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "pickaxe":
                for alias in node.names:
                    assert hasattr(pickaxe, alias.name), alias.name


def test_every_command_in_the_documents_exists():
    from pickaxe.cli._commands import cli

    for document in DOCUMENTS:
        for command in re.findall(r"^\$ pickaxe ([a-z]+)", document.read_text(), re.MULTILINE):
            assert command in cli.commands, f"{document.name}: pickaxe {command}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^\$ make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_changelog_begins_with_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first
    assert first.group(1) == pickaxe.__version__


def test_the_transition_tables_in_contributing_are_those_of_the_code():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for heading, table in (("run from", RUN_TRANSITIONS), ("step from", STEP_TRANSITIONS)):
        part = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
        rows = dict(re.findall(r"^\| (\w+) \| ([^|]+) \|$", part, re.MULTILINE))
        assert set(rows) == {str(state) for state, targets in table.items() if targets}
        for state, row in rows.items():
            said = set(re.findall(r"\w+", re.sub(r"\([^)]*\)", "", row))) & {str(s) for s in table}
            assert said == {str(target) for target in table[type(next(iter(table)))(state)]}, state


class Litter:
    """Collected together with itself only, and then it parses source, as a traceback that is formatted does."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        (lambda: (lambda: ast.parse("1"))())()


def test_source_is_parsed_whatever_litter_could_be_collected_meanwhile():
    before = gc.get_threshold()
    gc.set_threshold(50, 1, 1)
    try:
        for _ in range(20):
            Litter(), Litter(), Litter()
            parsed("x = [1, 2, 3]\n" * 500)
    finally:
        gc.set_threshold(*before)


def test_every_invariant_names_tests_that_exist():
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Invariants")[2]
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 10
    for name in named:
        assert f"def {name}(" in sources, name
