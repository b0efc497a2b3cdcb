"""The typed face of an agent or tool: what goes in, what comes out, both ways through JSON."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NotRequired, get_origin, get_type_hints

import pydantic
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from pickaxe import _values
from pickaxe._inject import Context, Injected, resources
from pickaxe.errors import ConfigurationError, InputError, OutputError

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_CONNECTIONS = frozenset({
    *("psycopg.Connection", "sqlalchemy.engine.base.Connection", "sqlalchemy.orm.session.Session"),
    *("psycopg.AsyncConnection", "sqlalchemy.ext.asyncio.engine.AsyncConnection"),
    "sqlalchemy.ext.asyncio.session.AsyncSession",
})  # fmt: skip
"""By name, so that a project without a transactional tool imports none of them for it."""


class Signature:
    """Validates and converts a function's arguments and result. `what` names it: `"tool 'search'"`."""

    def __init__(self, function: Callable[..., Any], *, what: str) -> None:
        self.function = function
        self.what = what
        self._signature = inspect.signature(function)
        self.injected: dict[str, Injected] = {}
        self._inputs: dict[str, inspect.Parameter] = {}
        for name, parameter in self._signature.parameters.items():
            self._sort(name, parameter)

    def _sort(self, name: str, parameter: inspect.Parameter) -> None:
        if parameter.kind not in _NAMED:
            raise ConfigurationError(
                f"{self.what} has the parameter {str(parameter)!r}: every input needs a name of its own, so *args, "
                f"**kwargs and positional-only parameters cannot be used"
            )
        if isinstance(parameter.default, Injected):
            self.injected[name] = parameter.default
        else:
            self._inputs[name] = parameter

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return get_type_hints(self.function, include_extras=True)
        except NameError as error:
            raise ConfigurationError(
                f"{self.what}: the annotation {error.name!r} cannot be found. Types of inputs and outputs must be "
                f"importable at run time, so do not hide them behind `if TYPE_CHECKING`."
            ) from error

    @cached_property
    def connection(self) -> tuple[str, type] | None:
        """The parameter that is to be the call's own database connection, and its type. None: there is none."""
        for name, marker in self.injected.items():
            annotation = self._annotation(name)
            if marker.factory is None and _is_connection(annotation := get_origin(annotation) or annotation):
                return name, annotation
        return None

    def _annotation(self, name: str) -> Any:
        """One parameter's own, as the others' need not be known yet."""
        plain = {name: self._signature.parameters[name].annotation}
        scope = getattr(inspect.unwrap(self.function), "__globals__", {})
        try:
            return get_type_hints(SimpleNamespace(__annotations__=plain), globalns=scope).get(name)
        except NameError as error:
            raise ConfigurationError(
                f"{self.what}: the annotation {error.name!r} of the injected parameter {name!r} cannot be found. "
                f"Import it before the tool is defined, and not behind `if TYPE_CHECKING`."
            ) from error

    @property
    def inputs(self) -> frozenset[str]:
        """The names of what the caller gives."""
        return frozenset(self._inputs)

    @cached_property
    def input(self) -> TypeAdapter[Any]:
        """The validator of all inputs, as one mapping."""
        fields = {
            name: self._hints.get(name, Any)
            if parameter.default is parameter.empty
            else NotRequired[self._hints.get(name, Any)]
            for name, parameter in self._inputs.items()
        }
        make: Any = TypedDict  # made at run time, which type checkers do not follow
        shape = make(f"{self.function.__name__}_input", fields)
        shape.__pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="constants")
        return self._usable(lambda: TypeAdapter(shape))

    @cached_property
    def output(self) -> TypeAdapter[Any]:
        """The validator of the result."""
        return self._usable(lambda: _values.adapter(self._hints.get("return", Any)))

    def check(self) -> None:
        """Raises `ConfigurationError` if a type cannot be used."""
        assert self.input
        assert self.output

    def _usable(self, make: Callable[[], TypeAdapter[Any]]) -> TypeAdapter[Any]:
        try:
            return make()
        except pydantic.errors.PydanticUserError as error:
            raise ConfigurationError(
                f"{self.what}: an input or output type cannot be used, pydantic says: {error.message}"
            ) from error

    @property
    def output_name(self) -> str:
        """The promised type of the result, for people."""
        hint = self._hints.get("return", Any)
        return getattr(hint, "__name__", None) or str(hint)

    def encode_input(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, cap: int) -> str:
        """The arguments of a call as JSON text. Raises `InputError` or `PayloadError`."""
        what = f"the input of {self.what}"
        try:
            bound = self._signature.bind_partial(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"{what} does not fit: {error}. It takes {self._summary()}.") from error
        if forced := [name for name in bound.arguments if name in self.injected]:
            raise InputError(f"{what} does not fit: {forced[0]!r} is filled in by the worker, leave it out")
        bound.apply_defaults()
        given = {name: value for name, value in bound.arguments.items() if name in self._inputs}
        checked = _values.check(self.input, given, what=what, error=InputError)
        return _values.encode(self.input, checked, what=what, cap=cap)

    def decode_input(self, text: str) -> dict[str, Any]:
        """The typed arguments of a call. Raises `InputError`."""
        arguments: dict[str, Any] = _values.decode(self.input, text, what=f"the input of {self.what}", error=InputError)
        return arguments

    def encode_output(self, value: Any, *, cap: int) -> str:
        """A result as JSON text. Raises `OutputError` or `PayloadError`."""
        what = f"the result of {self.what}"
        promise = f"{what} (a {type(value).__name__}; it promises {self.output_name})"
        checked = _values.check(self.output, value, what=promise, error=OutputError)
        return _values.encode(self.output, checked, what=what, cap=cap)

    def decode_output(self, text: str) -> Any:
        """The typed result. Raises `OutputError`."""
        return _values.decode(self.output, text, what=f"the recorded result of {self.what}", error=OutputError)

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Collection[str]:
        """The names of the parameters that a call gives a value to. Raises `TypeError`, as the call itself would."""
        return self._signature.bind_partial(*args, **kwargs).arguments.keys()

    def inject(self, context: Context, given: Collection[str] = ()) -> dict[str, Any]:
        """The values of the injected parameters, except those already `given`."""
        return {
            name: self._injected(name, marker, context) for name, marker in self.injected.items() if name not in given
        }

    def _injected(self, name: str, marker: Injected, context: Context) -> Any:
        if marker.factory is not None:
            return resources.get(marker.factory)
        if self.connection is not None and self.connection[0] == name:
            raise ConfigurationError(
                f"{self.what} works on a connection, which only a worker gives it: pass {name}= yourself, or in "
                f"a simulation replace the tool with tools={{...}}"
            )
        return context

    def _summary(self) -> str:
        return "(" + ", ".join(str(parameter) for parameter in self._inputs.values()) + ")"


def _is_connection(annotation: Any) -> bool:
    return isinstance(annotation, type) and any(
        f"{base.__module__}.{base.__qualname__}" in _CONNECTIONS for base in annotation.__mro__
    )
