"""Real Postgres and Redis for every test that asks for them; each test has its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pickaxe import Settings
from pickaxe.store import Database, migrate
from tests.services import (
    isolated_database,
    isolated_redis,
    pytest_configure,
    pytest_unconfigure,
    template_database,
)

__all__ = ["pytest_configure", "pytest_unconfigure"]


def _migrated(url: str) -> None:
    database = Database(url)
    migrate(database)
    database.close()


@pytest.fixture(scope="session")
def template() -> str:
    """The name of a database with Pickaxe's tables, to be copied."""
    return template_database("pickaxe_template", _migrated)


@pytest.fixture
def database_url(template: str) -> Iterator[str]:
    """A database of this test's own, migrated."""
    with isolated_database(template) as url:
        yield url


@pytest.fixture
def redis_url() -> str:
    """An empty Redis database of this test's own."""
    return isolated_redis()


@dataclass(frozen=True)
class Services:
    database_url: str
    redis_url: str

    @property
    def environment(self) -> dict[str, str]:
        """What a worker process needs to find them."""
        return {"PICKAXE_DATABASE_URL": self.database_url, "PICKAXE_REDIS_URL": self.redis_url}

    def settings(self, **more: object) -> Settings:
        return Settings(_env_file=None, database_url=self.database_url, redis_url=self.redis_url, **more)  # type: ignore[arg-type]


@pytest.fixture
def services(database_url: str, redis_url: str) -> Services:
    """Postgres and Redis of this test's own."""
    return Services(database_url, redis_url)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own settings."""
    import os

    for name in list(os.environ):
        if name.startswith("PICKAXE_") and not name.startswith("PICKAXE_TEST_"):
            monkeypatch.delenv(name)
