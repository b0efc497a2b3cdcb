"""What a message must look like, checked before Celery sees it.

Pure functions over decoded JSON. Celery and kombu take the shape of a message on trust: a body that is not a
list of three, an id that is missing or a header that is a number end the worker process, or send it round and
round through reconnects (`KeyError` counts as a lost connection in kombu's Redis transport). So the shape is
checked here, and whatever does not fit is wrapped into an envelope that does, and set aside by the consumer.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from celery.utils.time import maybe_iso8601

#: Marks an envelope that only carries the bytes of one that could not be read; its value is the reason.
MALFORMED_HEADER = "pickaxe_malformed"
MALFORMED_CONTENT_TYPE = "application/x-pickaxe-malformed"

#: Envelopes above this many bytes are set aside unread. A Pickaxe message is about 1 kB: it carries ids.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

#: What is kept of those: a copy or two of the whole would cost a worker more memory than all else that it does.
KEPT_OF_TOO_LARGE = 64 * 1024

_BODY_ENCODINGS = frozenset({"base64", "utf-8", "", None})


def read_envelope(item: bytes, queue: str, *, max_bytes: int = MAX_MESSAGE_BYTES) -> dict[str, Any]:
    """Decode what was popped from `queue`; anything unreadable comes back wrapped, never as an error."""
    if len(item) > max_bytes:
        reason = f"the message has {len(item)} bytes, more than {max_bytes}"
        return wrap_malformed(item[:KEPT_OF_TOO_LARGE], queue, f"{reason}: only its first {KEPT_OF_TOO_LARGE} are kept")
    try:
        envelope = json.loads(item)
    except (ValueError, RecursionError) as error:
        return wrap_malformed(item, queue, f"the envelope is not JSON: {error}")
    fault = envelope_fault(envelope)
    if fault is not None:
        return wrap_malformed(item, queue, fault)
    if envelope.get("headers") is None:
        envelope["headers"] = {}  # kombu could not put such a message back: it would be dropped on restore
    result: dict[str, Any] = envelope
    return result


def wrap_malformed(item: bytes, queue: str, reason: str) -> dict[str, Any]:
    """A well-formed envelope whose body is `item`, so that it is acknowledged or restored like any other."""
    return {
        "body": base64.b64encode(item).decode("ascii"),
        "content-type": MALFORMED_CONTENT_TYPE,
        "content-encoding": "binary",
        "headers": {MALFORMED_HEADER: reason},
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
        },
    }


def envelope_fault(envelope: object) -> str | None:
    """Why kombu could not carry this envelope, or `None`."""
    if not isinstance(envelope, dict):
        return f"the envelope is {_kind(envelope)}, not an object"
    for name in ("content-type", "content-encoding"):
        if not isinstance(envelope.get(name), str):
            return f"{name} is {_kind(envelope.get(name))}, not text"
    headers = envelope.get("headers")
    if headers is not None and not isinstance(headers, dict):
        return f"headers is {_kind(headers)}, not an object"
    return _properties_fault(envelope.get("properties")) or _encoded_body_fault(envelope)


def _properties_fault(properties: object) -> str | None:
    if not isinstance(properties, dict):
        return f"properties is {_kind(properties)}, not an object"
    tag = properties.get("delivery_tag")
    if not isinstance(tag, str) or not tag or not tag.isascii():
        return "delivery_tag is not a plain text"
    priority = properties.get("priority")
    if priority is not None and not isinstance(priority, int):
        return f"priority is {_kind(priority)}, not a whole number"
    info = properties.get("delivery_info")
    if not isinstance(info, dict):
        return f"delivery_info is {_kind(info)}, not an object"
    for name in ("exchange", "routing_key"):
        value = info.get(name)
        if not isinstance(value, str) or not _encodable(value):
            return f"delivery_info.{name} is not a text"
    return None


def _encoded_body_fault(envelope: dict[str, Any]) -> str | None:
    body, encoding = envelope.get("body"), envelope["properties"].get("body_encoding")
    if not isinstance(body, str):
        return f"body is {_kind(body)}, not text"
    if encoding is not None and not isinstance(encoding, str):
        return "body_encoding is not a text"
    if encoding not in _BODY_ENCODINGS:
        return f"body_encoding is {encoding!r}, not base64"
    if encoding == "base64":
        try:
            base64.b64decode(body, validate=True)
        except ValueError as error:
            return f"the body is not base64: {error}"
    elif not _encodable(body):
        return "the body is not Unicode text"
    return None


def task_name_fault(headers: Mapping[str, Any]) -> str | None:
    """Why these headers name no task of Celery's message protocol 2, or `None`."""
    for name in ("task", "id"):
        value = headers.get(name)
        if value is None:
            return f"no {name!r} header: not a task message of Celery's protocol 2"
        if not isinstance(value, str) or not value or not _encodable(value):
            return f"header {name!r} is {_kind(value)}, not a text"
    return None


def payload_fault(payload: object) -> str | None:
    """Why a decoded body is not `[args, kwargs, embed]`, or `None`."""
    if not isinstance(payload, (list, tuple)) or len(payload) != 3:
        return f"the body is {_kind(payload)}, not [args, kwargs, embed]"
    args, kwargs, embed = payload
    if not isinstance(args, (list, tuple)):
        return f"args is {_kind(args)}, not a list"
    if not isinstance(kwargs, dict):
        return f"kwargs is {_kind(kwargs)}, not an object"
    if embed is not None and not isinstance(embed, dict):
        return f"embed is {_kind(embed)}, not an object"
    return _embed_fault(embed or {})


def _embed_fault(embed: dict[str, Any]) -> str | None:
    for name in ("callbacks", "errbacks", "chain"):
        value = embed.get(name)
        if value is None:
            continue
        if not isinstance(value, list):
            return f"{name} is {_kind(value)}, not a list"
        if not all(_is_signature(member) for member in value):
            return f"{name} holds something else than signatures"
    chord = embed.get("chord")
    if chord is not None and not _is_signature(chord):
        return "chord is not a signature"
    return None


def _is_signature(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("task"), str):
        return False
    parts: tuple[tuple[str, type | tuple[type, ...]], ...] = (
        ("args", (list, tuple)),
        ("kwargs", dict),
        ("options", dict),
    )
    return all(value.get(name) is None or isinstance(value[name], kind) for name, kind in parts)


def header_fault(headers: Mapping[str, Any]) -> str | None:
    """Why Celery would trip over one of the optional headers, or `None`."""
    for name in ("shadow", "eta", "expires", "root_id", "parent_id", "group"):
        value = headers.get(name)
        if value is not None and not (isinstance(value, str) and _encodable(value)):
            return f"header {name!r} is {_kind(value)}, not a text"
    for name, kinds in (("retries", int), ("stamped_headers", list), ("stamps", dict)):
        value = headers.get(name)
        if value is not None and not isinstance(value, kinds):
            return f"header {name!r} is {_kind(value)}"
    for name in ("eta", "expires"):
        if headers.get(name) is not None and not _is_date(headers[name]):
            return f"header {name!r} is {headers[name]!r}, not a date"
    if not _is_timelimit(headers.get("timelimit")):
        return f"header 'timelimit' is {headers.get('timelimit')!r}, not [hard, soft]"
    if not all(isinstance(name, str) for name in headers.get("stamped_headers") or ()):
        return "header 'stamped_headers' holds something else than names"
    return None


def _is_date(text: str) -> bool:
    try:
        return maybe_iso8601(text) is not None
    except (ValueError, TypeError, OverflowError):
        return False


def _is_timelimit(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return all(part is None or (isinstance(part, (int, float)) and part >= 0) for part in value)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", tuple: "a list", str: "a text", bool: "a truth value"}
    return "missing" if value is None else names.get(type(value), f"a {type(value).__name__}")
