"""The process that owns the servers of one `Services` and ends them when its parent is gone.

``python -m pickaxe.embedded.supervisor`` reads one JSON object per line from standard input and
answers each with one on standard output. The first line says what to start. End of input, or
another parent than at the start, means that the parent ended, however it did.
"""

import json
import os
import selectors
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import SubprocessError
from types import FrameType
from typing import Any

from pickaxe.embedded._directory import ServiceDirectory
from pickaxe.embedded._postgres import DATABASE, SUPERUSER, PostgresServer
from pickaxe.embedded._redis import RedisServer
from pickaxe.embedded._server import LOOPBACK
from pickaxe.embedded._wheels import Programs, ServerUser
from pickaxe.errors import ConfigurationError, ServiceUnavailableError

_PARENT_CHECK = 0.5  # seconds between looks at the parent, which can leave the pipe to its own children


class Supervisor:
    """The servers of one directory."""

    def __init__(self) -> None:
        self._programs = Programs()
        self._directory: ServiceDirectory | None = None
        self._postgres: PostgresServer | None = None
        self._redis: RedisServer | None = None

    def start(self, directory: str | None, owner: int, *, postgres: bool, redis: bool, durable: bool) -> None:
        """Take the directory and start the servers.

        Raises ConfigurationError and ServiceUnavailableError, see `Services.start`.
        """
        self._directory = ServiceDirectory(Path(directory) if directory else None, owner)
        # Before the cluster gets its password: a crash in between must not lose it.
        self._directory.save()
        if postgres:
            self._start_postgres(self._directory, durable=durable)
        if redis:
            self._start_redis(self._directory)
        self._directory.save()

    def stop(self) -> None:
        """Stop the servers, then give the directory back."""
        if self._redis is not None:
            self._redis.stop()
        if self._postgres is not None:
            self._postgres.stop()
        self._programs.close()
        if self._directory is not None:
            self._directory.close()

    def command(self, server: str, action: str, mode: str) -> None:
        """Start, stop or restart one server, or ("status") do nothing.

        `mode` is for Postgres: "fast" or "immediate".
        """
        stop, start = self._actions(server, mode)
        if action in ("stop", "restart"):
            stop()
        if action in ("start", "restart"):
            start()

    def reap(self) -> None:
        """Notice servers that ended by themselves, so that they do not stay as zombies."""
        self._pids()

    def status(self) -> dict[str, Any]:
        """Return where the servers are; a server that was not asked for is missing."""
        assert self._directory is not None
        return {
            "directory": str(self._directory.path),
            "database_url": self._database_url(),
            "redis_url": self._redis_url(),
            "pids": self._pids(),
        }

    def _start_postgres(self, directory: ServiceDirectory, *, durable: bool) -> None:
        data, state = directory.path / "postgres", directory.state
        user = ServerUser.for_data(data)
        self._postgres = PostgresServer(
            self._programs.postgres(user),
            data,
            _new_log(directory.path / "postgres.log"),
            user,
            state.postgres_port,
            durable=durable,
        )
        self._postgres.initialise(state.postgres_password)
        self._postgres.start()
        state.postgres_port = self._postgres.port

    def _start_redis(self, directory: ServiceDirectory) -> None:
        data, state = directory.path / "redis", directory.state
        user = ServerUser.for_data(data)
        self._redis = RedisServer(
            self._programs.redis(user),
            data,
            _new_log(directory.path / "redis.log"),
            user,
            state.redis_port,
            password=state.redis_password,
        )
        self._redis.initialise()
        self._redis.start()
        state.redis_port = self._redis.port

    def _actions(self, server: str, mode: str) -> tuple[Callable[[], None], Callable[[], None]]:
        if server == "postgres" and (postgres := self._postgres) is not None:
            return lambda: postgres.stop(mode), postgres.start
        if server == "redis" and self._redis is not None:
            return self._redis.stop, self._redis.start
        raise ConfigurationError(f"{server} was not started with these services")

    def _pids(self) -> dict[str, int | None]:
        servers = {"postgres": self._postgres, "redis": self._redis}
        return {name: None if server is None else server.pid for name, server in servers.items()}

    def _database_url(self) -> str | None:
        if self._postgres is None or self._directory is None:
            return None
        password = self._directory.state.postgres_password
        return f"postgresql://{SUPERUSER}:{password}@{LOOPBACK}:{self._postgres.port}/{DATABASE}"

    def _redis_url(self) -> str | None:
        if self._redis is None or self._directory is None:
            return None
        return f"redis://:{self._directory.state.redis_password}@{LOOPBACK}:{self._redis.port}/0"


def main() -> None:
    """Serve standard input until it ends."""
    signal.signal(signal.SIGTERM, _leave)
    # A function, because a server would inherit "ignore".
    signal.signal(signal.SIGINT, lambda _number, _frame: None)
    supervisor = Supervisor()
    try:
        _serve(supervisor)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
    finally:
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # already on the way out
        supervisor.stop()


def _serve(supervisor: Supervisor) -> None:
    requests = _requests(supervisor)
    first = next(requests, None)
    if first is None or not _answer(supervisor, supervisor.start, first):
        return
    for request in requests:
        _answer(supervisor, supervisor.command, request)


def _answer(supervisor: Supervisor, action: Callable[..., None], request: dict[str, Any]) -> bool:
    """Do it, tell the parent how it went, and return whether it went well."""
    number = request.pop("number")
    answer: dict[str, Any]
    try:
        action(**request)
        answer = {"error": None, **supervisor.status()}
    except (ConfigurationError, ServiceUnavailableError) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except (OSError, SubprocessError) as error:  # a directory without permission, a full disk
        answer = {"error": ServiceUnavailableError.__name__, "message": f"{type(error).__name__}: {error}"}
    print(json.dumps({"number": number, **answer}), flush=True)  # noqa: T201 - the answer goes to the parent
    return answer["error"] is None


def _requests(supervisor: Supervisor) -> Iterator[dict[str, Any]]:
    """Yield the requests until the parent is gone."""
    parent = os.getppid()
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        while os.getppid() == parent:
            supervisor.reap()
            if not selector.select(_PARENT_CHECK):
                continue
            if not (chunk := os.read(sys.stdin.fileno(), 65536)):
                return
            *complete, buffer = (buffer + chunk).split(b"\n")
            yield from map(json.loads, complete)


def _new_log(path: Path) -> Path:
    path.unlink(missing_ok=True)  # one log per start: it stays small
    return path


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
