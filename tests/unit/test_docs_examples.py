"""The examples of the pages in `docs/`, put together page by page, and run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if "```python" in page.read_text())

SURROUNDINGS = {
    "billing": SimpleNamespace(create=lambda order, idempotency_key: f"invoice for {order}"),
    "bank": SimpleNamespace(find=lambda key: None, charge=lambda order, cents, reference: f"receipt for {order}"),
}
"""What the examples talk to."""


def load(page: str) -> types.ModuleType:
    """The page's examples as one module."""
    module = types.ModuleType(f"example_of_{page.removesuffix('.md')}")
    module.__dict__.update(SURROUNDINGS)
    sys.modules[module.__name__] = module  # annotations are looked up there
    for block in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(block, module.__dict__)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_work_as_they_stand(page: str) -> None:
    module = load(page)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]
    assert tests, f"{page} has Python, but nothing that runs it"
    for test in tests:
        test()
