"""Settings, with one order of precedence: keyword over environment over `.env` over default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an app needs to know about its surroundings.

    Read from the environment with the prefix `PICKAXE_` (for example `PICKAXE_DATABASE_URL`) and from a
    `.env` file in the working directory. Times are in seconds, sizes in bytes.
    """

    model_config = SettingsConfigDict(env_prefix="PICKAXE_", env_file=".env", extra="ignore", frozen=True)

    database_url: SecretStr | None = Field(None, description="Postgres, such as postgresql://user@host/db")
    redis_url: SecretStr | None = Field(None, description="Redis, for the broker, limits and streams")
    broker_url: SecretStr | None = Field(None, description="the broker, if it is not that Redis")

    max_payload: int = Field(1024 * 1024, ge=1024, description="largest stored value, in bytes of JSON")
    redispatch_after: float = Field(5.0, gt=0, description="a message not picked up is sent again after this")
    redispatch_cap: float = Field(300.0, gt=0, description="…and the wait doubles up to this")
    beat_every: float = Field(1.0, gt=0, description="how often a worker process shows that it lives")
    dead_after: float = Field(2.0, gt=0, description="lock gone and no beat for this long: dead")
    vanished_after: float = Field(10.0, gt=0, description="no beat for this long: dead, lock or no lock")
    sweep_every: float = Field(1.0, gt=0, description="longest pause between two rounds of the sweeper")
    stream_ttl: float = Field(60.0, gt=0, description="how long a run's live stream outlives its last entry")
    boot_patience: float = Field(60.0, ge=0, description="how long a starting worker waits for its services")
    continuation: Literal["plain", "resume", "inline"] = Field(
        "inline", description="how a run goes on after a call: by a message, in its process, or with the next call too"
    )
    inline_for: float = Field(0.1, ge=0, description="how long one task may go on with the calls that follow")
    sticky: int = Field(256, ge=0, description="suspended agents a process keeps for their next arrival")
    answer_within: float = Field(
        30.0, gt=0, description="a database connection that is silent for this long is given up"
    )
    pool_size: int = Field(10, ge=1, description="database connections a process keeps")
    quarantine_after: int = Field(
        2, ge=0, description="a step that killed so many workers in a row is set aside; 0: never"
    )
    keep_workers: float = Field(
        30 * 86400.0, ge=0, description="how long ended worker processes stay known; 0: for ever"
    )
    keep_events: float = Field(30 * 86400.0, ge=0, description="how far back a wait for an event can look; 0: for ever")
    keep_dead_letters: float = Field(90 * 86400.0, ge=0, description="how long unreadable messages stay; 0: for ever")
