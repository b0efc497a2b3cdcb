"""Models by name: `"anthropic:claude-sonnet-5-5"` is the model `claude-sonnet-5-5` of the provider `anthropic`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from pickaxe.errors import ConfigurationError
from pickaxe.models._anthropic import Anthropic
from pickaxe.models._chat import OpenAIChat
from pickaxe.models._dialects import PRESETS
from pickaxe.models._provider import Provider
from pickaxe.models._responses import OpenAIResponses

_makers: dict[str, Callable[[], Provider]] = {
    "anthropic": Anthropic,
    "openai-responses": OpenAIResponses,
    **{name: partial(OpenAIChat, name) for name in PRESETS},
}
_made: dict[str, Provider] = {}
_lock = threading.Lock()


def register_provider(name: str, make: Callable[[], Provider]) -> None:
    """Let model names that begin with `name:` mean the provider that `make` makes, once per process, at first use.

    Replaces whatever had that name, `anthropic` itself too: so a project gives it another address or key. Raises
    `ConfigurationError` for a name with a colon or none at all.
    """
    if not name or ":" in name:
        raise ConfigurationError(f"a provider cannot be named {name!r}: it is what stands before the first colon")
    with _lock:
        _makers[name] = make
        _made.pop(name, None)


def provider_of(model: str) -> tuple[Provider, str]:
    """The provider of `"provider:model"`, and the model's own name, which may have more colons.

    Raises `ConfigurationError` for a provider that nobody has registered, and for a name without one.
    """
    name, colon, own = model.partition(":")
    if not colon or not own:
        raise ConfigurationError(f'model {model!r} must be "provider:model", as in "anthropic:claude-sonnet-5-5"')
    with _lock:
        if name not in _makers:
            known = ", ".join(sorted(_makers))
            raise ConfigurationError(
                f"model {model!r}: no provider is named {name!r}; known are {known}; "
                f"add others with pickaxe.models.register_provider"
            )
        if name not in _made:
            _made[name] = _makers[name]()
        return _made[name], own
