"""Imports only go down, one room for each thing, and rooms stay small."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.sources import tree_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "pickaxe"
FLEET = ("tasks", "toolbox", "integrations", "workers")

FLOORS = {
    0: ("errors", "_states", "_retry", "_rates", "_durations", "_settings", "_values", "_inject", "_signatures",
        "_specs", "_effects", "_texts", "_places", "_uuids", "_failpoints", "_version"),
    1: ("core",),
    2: ("store", "broker", "models"),
    3: ("engine",),
    4: ("authoring",),
    5: ("app", "client", "_run", "streams"),
    6: ("cli", "server", "testing", "embedded", "demo", "__main__", "__init__"),
}  # fmt: skip
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
ONLY_IN = {
    "celery": "broker",
    "kombu": "broker",
    "billiard": "broker",
    "anthropic": "models",
    "openai": "models",
}
LONGEST_MODULE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 400, 60, 12


def modules(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*.py")) if "__pycache__" not in path.parts)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {*(f"{node.module}.{alias.name}" for alias in node.names)}
            found |= {node.module} - {"pickaxe"}
    return found


def only_for_types(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    found |= {inner.module, *(f"{inner.module}.{alias.name}" for alias in inner.names)}
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "__init__"


@pytest.mark.parametrize("path", list(modules(PACKAGE)), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert own in FLOOR_OF, f"{own} has no floor yet: give it one in this test"
    for module in imports(path) - only_for_types(path):
        top = module.split(".")[0]
        assert top not in FLEET, f"{path} imports {module}: the fleet imports pickaxe, never the other way"
        if top == "pickaxe" and room(module) != own and FLOOR_OF[own] < 6:
            assert FLOOR_OF[room(module)] < FLOOR_OF[own] or (
                FLOOR_OF[room(module)] == FLOOR_OF[own] and FLOOR_OF[own] in (0, 5)
            ), f"{path} (floor {FLOOR_OF[own]}) imports {module} (floor {FLOOR_OF[room(module)]})"


@pytest.mark.parametrize("path", list(modules(PACKAGE)), ids=lambda p: str(p.relative_to(ROOT)))
def test_each_outside_library_has_one_room(path: Path) -> None:
    own = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        home = ONLY_IN.get(module.split(".")[0])
        assert home in (None, own), f"{path} imports {module}, which belongs in pickaxe/{home}"


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A docstring is for the reader of the documentation; what is measured is the code.
            doc = node.body[0] if ast.get_docstring(node) else None
            length = (node.end_lineno or 0) - node.lineno + 1
            yield node.name, length - ((doc.end_lineno or 0) - doc.lineno + 1 if doc else 0)


@pytest.mark.parametrize("path", list(modules(PACKAGE)), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_are_small(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LONGEST_MODULE
    for name, length in functions(path):
        assert length <= LONGEST_FUNCTION, f"{path}: {name} has {length} lines"


def test_the_median_function_can_be_seen_at_once() -> None:
    lengths = [length for path in modules(PACKAGE) for _, length in functions(path)]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_sql_lives_in_the_store_only() -> None:
    words = ("SELECT ", "INSERT INTO", "UPDATE pickaxe", "DELETE FROM")
    for path in modules(PACKAGE):
        if path.is_relative_to(PACKAGE / "store") or path.is_relative_to(PACKAGE / "embedded"):
            continue
        text = path.read_text("utf-8")
        assert not any(word in text for word in words), f"{path} contains SQL"
