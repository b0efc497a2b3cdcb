"""Models by name."""

import pytest

from pickaxe.errors import ConfigurationError
from pickaxe.models import Anthropic, Provider, provider_of, register_provider
from pickaxe.testing import FakeProvider
from tests.unit.models.asking import answer, request


def test_a_name_says_which_provider_and_which_model():
    provider, model = provider_of("anthropic:claude-sonnet-5-5")
    assert isinstance(provider, Anthropic)
    assert isinstance(provider, Provider)
    assert (provider.name, model) == ("anthropic", "claude-sonnet-5-5")


def test_a_providers_adapter_is_made_once():
    assert provider_of("anthropic:a")[0] is provider_of("anthropic:b:c")[0]
    assert provider_of("anthropic:b:c")[1] == "b:c"


@pytest.mark.parametrize("name", ["claude-sonnet-5-5", "anthropic:", ":x", "", "nobody:x"])
def test_a_name_that_means_nothing_is_refused_and_says_what_would(name: str):
    with pytest.raises(ConfigurationError, match="anthropic"):
        provider_of(name)


@pytest.mark.parametrize("name", ["", "a:b"])
def test_a_provider_cannot_be_named_what_could_not_be_asked_for(name: str):
    with pytest.raises(ConfigurationError, match="first colon"):
        register_provider(name, Anthropic)


def test_a_project_adds_its_own_and_replaces_it():
    with FakeProvider("Hi") as fake:
        register_provider("acme", Anthropic)
        provider_of("acme:x")
        register_provider("acme", lambda: Anthropic(api_key="key", base_url=fake.url, name="acme"))
        provider, model = provider_of("acme:claude")
        assert answer(provider, request(model=model)).provider == "acme"
