"""Text that comes in pieces."""

from __future__ import annotations

from pickaxe.models._http import joined, sendable


def whole(text: str) -> str:
    """The text with halves of characters joined, and those without their other half replaced: UTF-8 has none."""
    mended: str = sendable(joined(text))
    return mended


class Prose:
    """Text that grows. JSON can write a character as two halves, and a piece may end between them."""

    def __init__(self, text: str = "") -> None:
        self._pieces: list[str] = []
        self._half = ""
        self.add(text)

    def add(self, piece: str) -> str:
        """Append a piece. Returns what can be shown of it already."""
        piece, self._half = self._half + piece, ""
        if piece and "\ud800" <= piece[-1] <= "\udbff":
            piece, self._half = piece[:-1], piece[-1]
        piece = whole(piece)
        if piece:
            self._pieces.append(piece)
        return piece

    def __str__(self) -> str:
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return "".join(self._pieces) + whole(self._half)

    def __bool__(self) -> bool:
        return bool(self._pieces or self._half)
