"""Search and read the library."""

from __future__ import annotations

from dataclasses import dataclass

from integrations.library import Hit, Library, open_library
from pickaxe import inject, tool


@dataclass(frozen=True)
class Outline:
    """A document at a glance."""

    document: str
    title: str
    sentences: int


@tool(retries=2, timeout="20s")
def search(terms: list[str], limit: int = 50, library: Library = inject(open_library)) -> list[Hit]:
    """The documents that mention any of the terms, best first."""
    return library.search(terms)[:limit]


@tool(retries=2, timeout="20s")
def read(document: str, library: Library = inject(open_library)) -> Outline:
    """Read a document. Its text stays where it is: the log holds a reference, not a copy."""
    sentences = library.sentences(document)
    return Outline(document, sentences[0][:80], len(sentences))


@tool(retries=2, timeout="20s")
def is_verbatim(document: str, quotes: list[str], library: Library = inject(open_library)) -> list[bool]:
    """Whether each quote stands in the document, word for word."""
    sentences = set(library.sentences(document))
    return [quote in sentences for quote in quotes]
