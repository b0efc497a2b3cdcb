"""A folder of plain-text documents: list, search, read."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

WORD = re.compile(r"[a-z]+")
SENTENCE_END = re.compile(r"(?<=[.;:])\s+(?=[\w(\"'])")


@dataclass(frozen=True)
class Hit:
    """A document that mentions some of the terms. The higher the score, the better it fits."""

    document: str
    score: float
    matched: list[str]


class Library:
    """The `.txt` files of one folder. A document's name is its file name without `.txt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """All documents, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.txt"))

    def read(self, name: str) -> str:
        """The text of a document. Raises `LookupError` if there is none of that name."""
        if name not in self.names():
            raise LookupError(f"there is no document {name!r} in {self.folder}")
        return (self.folder / f"{name}.txt").read_text("utf-8")

    def sentences(self, name: str) -> list[str]:
        """The sentences of a document, their white space made single spaces."""
        paragraphs = re.split(r"\n\s*\n", self.read(name))
        return [s for p in paragraphs for s in SENTENCE_END.split(normalised(p)) if s]

    def search(self, terms: list[str]) -> list[Hit]:
        """The documents that mention any of the terms, best first: rare terms count more than common ones."""
        counts = {name: Counter(WORD.findall(self.read(name).lower())) for name in self.names()}
        stems = [term.lower() for term in terms]
        found = {name: {s: _mentions(words, s) for s in stems} for name, words in counts.items()}
        rarity = {s: math.log(1 + len(found) / (1 + sum(f[s] > 0 for f in found.values()))) for s in stems}
        hits = [
            Hit(name, round(sum(rarity[s] * math.log1p(n) for s, n in f.items()), 3), [s for s, n in f.items() if n])
            for name, f in found.items()
        ]
        return sorted((hit for hit in hits if hit.matched), key=lambda hit: (-hit.score, hit.document))


def open_library() -> Library:
    """The folder named by `DOCUMENTS`, or the one beside this code."""
    return Library(Path(os.environ.get("DOCUMENTS") or Path(__file__).parents[1] / "documents"))


def normalised(text: str) -> str:
    """Text with every run of white space as one space."""
    return " ".join(text.split())


def _mentions(words: Counter[str], stem: str) -> int:
    return sum(n for word, n in words.items() if word.startswith(stem))
