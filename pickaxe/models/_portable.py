"""What the wire formats of OpenAI have in common when they are told what was said elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NoReturn

from pickaxe.models._errors import Failure, FailureRecord, ModelError
from pickaxe.models._messages import AssistantMessage, Content, File, Refusal, Text


class Refuser:
    """Says for one request that a provider cannot do something."""

    def __init__(self, provider: str, model: str) -> None:
        self.provider, self.model = provider, model

    def refuse(self, message: str) -> NoReturn:
        """Raise `ModelError` (`unsupported`)."""
        record = FailureRecord(failure=Failure.UNSUPPORTED, provider=self.provider, model=self.model, message=message)
        raise ModelError(record)


def call_id(own: str, pattern: str) -> str:
    """An id that a provider takes: this one, or the same other one each time."""
    if re.fullmatch(pattern, own):
        return own
    digest = hashlib.sha256(own.encode()).hexdigest()
    return next(made for made in (f"call_{digest[:24]}", digest[:9]) if re.fullmatch(pattern, made))


def name_of(file: File) -> str:
    """What a file is called."""
    return file.name or "file" + {"application/pdf": ".pdf"}.get(file.media_type, "")


def text_of(file: File) -> str | None:
    """What is in a file of text, under its name; None if it is no text, or not here."""
    if file.data is None or not file.media_type.startswith(("text/", "application/json", "application/xml")):
        return None
    text = base64.b64decode(file.data).decode("utf-8", "replace")
    return f'<file name="{name_of(file)}">\n{text}\n</file>'


def kind_of(file: File) -> str:
    """`image`, `pdf`, `audio` or what else it is, `_url` after it if it is elsewhere."""
    main, _, sub = file.media_type.partition("/")
    kind = main if main in ("image", "audio") else sub
    return kind if file.data is not None else f"{kind}_url"


def data_url(file: File) -> str:
    """Where a file is, or the file itself as an address."""
    return file.url if file.data is None and file.url else f"data:{file.media_type};base64,{file.data}"


def plain(content: tuple[Content, ...]) -> str:
    """The texts of what is said."""
    return "\n\n".join(part.text for part in content if isinstance(part, Text))


def said(message: AssistantMessage) -> str:
    """What a model has said, for another provider: no reasoning, and no tools of its provider's."""
    lines = []
    for part in message.content:
        if isinstance(part, Text | Refusal):
            lines.append(part.text)
        elif isinstance(part, File):
            lines.append(f"[{name_of(part)}, {part.media_type}]")
    return "\n\n".join(line for line in lines if line)
