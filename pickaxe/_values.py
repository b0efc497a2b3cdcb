"""Values on their way to and from the log: JSON text, byte for byte.

Text, not `jsonb`: jsonb reorders keys and refuses `\\u0000`. The text is pure ASCII, with everything else
escaped, so NUL characters and lone surrogates that models and web pages produce survive the round trip.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pydantic
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python

from pickaxe.errors import PayloadError, ValidationError

Json = Any
"""Whatever `json.loads` can return."""


def dump(value: Json) -> str:
    """`value` as ASCII JSON text. Raises `ValueError` or `TypeError` for what JSON cannot hold."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def load(text: str) -> Json:
    """The value of JSON text that `dump` wrote."""
    return json.loads(text)


def digest(text: str) -> str:
    """A short fingerprint of JSON text. Not a secret: it only tells whether a call's arguments changed."""
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """The validator of an annotation; NaN stays NaN, so that it is refused rather than turned to null."""
    try:
        return TypeAdapter(annotation, config=pydantic.ConfigDict(ser_json_inf_nan="constants"))
    except pydantic.PydanticUserError:  # models and dataclasses bring their own configuration
        return TypeAdapter(annotation)


ANYTHING = adapter(Any)
"""What takes any value that JSON has."""


def encode(adapter: TypeAdapter[Any], value: Any, *, what: str, cap: int) -> str:
    """`value`, already validated, as JSON text for the log.

    `what` names the value in errors, such as `"the result of tool 'search'"`; `cap` is the largest size
    in bytes. Raises `PayloadError`.
    """
    try:
        text = dump(_jsonable(adapter, value))
    except (PydanticSerializationError, ValueError, TypeError, RecursionError) as error:
        raise PayloadError(
            f"{what} cannot be stored as JSON: {_first_line(error)}. Return plain data, a pydantic model or a "
            f"dataclass; not {type(value).__name__!r} objects that hold connections, functions, NaN or bytes "
            f"that are not text."
        ) from error
    if len(text) > cap:
        raise PayloadError(
            f"{what} is {len(text):,} bytes of JSON; the cap is {cap:,}. Store it elsewhere and pass a "
            f"reference, or raise PICKAXE_MAX_PAYLOAD."
        )
    return text


def decode(adapter: TypeAdapter[Any], text: str, *, what: str, error: type[ValidationError]) -> Any:
    """The typed value of JSON text. Raises `error`, naming `what` and every field that does not fit."""
    try:
        return adapter.validate_python(json.loads(text), strict=False)
    except pydantic.ValidationError as cause:
        raise error(f"{what} does not fit: {explain(cause)}") from cause


def check(adapter: TypeAdapter[Any], value: Any, *, what: str, error: type[ValidationError]) -> Any:
    """`value` validated and converted. Raises `error`, naming `what` and every field that does not fit."""
    try:
        return adapter.validate_python(value)
    except pydantic.ValidationError as cause:
        raise error(f"{what} does not fit: {explain(cause)}") from cause


def explain(error: pydantic.ValidationError) -> str:
    """The faults of a pydantic error on one line: where, what, and the value that was given."""
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"]) or "value"
        given = repr(fault.get("input"))
        faults.append(f"{where}: {fault['msg']} (given {given if len(given) <= 80 else given[:77] + '...'})")
    return "; ".join(faults)


def _jsonable(adapter: TypeAdapter[Any], value: Any) -> Json:
    try:
        return adapter.dump_python(value, mode="json", warnings="error")
    except PydanticSerializationError as error:
        # pydantic encodes text as UTF-8 on the way and so stumbles over lone surrogates.
        if "surrogates" not in str(error):
            raise
        return to_jsonable_python(adapter.dump_python(value, mode="python"), fallback=_refuse)


def _refuse(value: Any) -> Json:
    raise TypeError(f"{type(value).__name__} is not JSON")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
