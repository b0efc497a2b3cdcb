"""Names and keys that people choose: what Postgres can hold, and no longer than its indexes take."""

from __future__ import annotations

import hashlib

from pickaxe.errors import InputError

LONGEST = 500
"""Bytes of UTF-8 that a name or key may have."""


def checked(text: object, what: str, *, longest: int = LONGEST, empty: bool = False) -> str:
    """`text`, if it can be stored. `what` names it in the error. Raises `InputError`."""
    if not isinstance(text, str):
        raise InputError(f"{what} must be text, not {text!r}")
    if not text and not empty:
        raise InputError(f"{what} is empty: leave it out, or give it at least one character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InputError(
            f"{what} holds half a character (a lone surrogate), which cannot be stored: {text!r}"
        ) from None
    if "\0" in text:
        raise InputError(f"{what} holds a NUL character, which cannot be stored: {text!r}")
    if size > longest:
        raise InputError(f"{what} is {size:,} bytes long, at most {longest:,} are allowed: {text[:40]!r}…")
    return text


def storable(text: str) -> str:
    """`text` from anywhere, with whatever Postgres cannot hold as visible escapes."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


def shortened(text: str, longest: int = LONGEST) -> str:
    """`text` from anywhere, as something that can be stored and compared; the end of what is too long as a digest."""
    text = storable(text)
    if len(text.encode()) <= longest:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return f"{text.encode()[: longest - 33].decode(errors='ignore')}~{digest}"
