"""`Services`: a real Postgres and a real Redis for as long as this process lives."""

import contextlib
import itertools
import json
import os
import shutil
import site
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pickaxe.errors import ConfigurationError, ServiceUnavailableError

ShutdownMode = Literal["fast", "immediate"]

_STOP_TIMEOUT = 90.0  # seconds; the supervisor itself gives each server 30
_GONE_TIMEOUT = 10.0  # seconds until the servers of a killed supervisor are gone
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
_ERRORS = {error.__name__: error for error in (ConfigurationError, ServiceUnavailableError)}


class Services:
    """Postgres and Redis on free loopback ports, owned by a supervisor process.

    Both end with `stop`, with the ``with`` block, and when this process ends in any way. Safe to
    use from several threads. A process forked from this one cannot use or stop them.
    """

    def __init__(self) -> None:
        """Start only the supervisor; use `Services.start`."""
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._owner = os.getpid()
        self._is_temporary = False
        self._status: dict[str, Any] = {}
        self._supervisor = subprocess.Popen(
            # -P: the working directory must not provide modules.
            [sys.executable, "-P", "-m", "pickaxe.embedded.supervisor"],
            cwd="/",
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal is for this process alone
        )

    @classmethod
    def start(
        cls, directory: Path | None = None, *, postgres: bool = True, redis: bool = True, durable: bool = True
    ) -> "Services":
        """Start the servers and wait until they answer.

        directory: where the data of Postgres stays between starts; created when missing. None for
            a temporary directory, removed at the end. Redis never keeps anything.
        postgres, redis: which servers to start.
        durable: whether a commit survives a crash of the machine; False is faster, for tests. A
            crash of Postgres alone it survives in either case.

        Raises ConfigurationError when the packages are missing (``pip install 'pickaxe[dev]'``) or
        another process uses the directory, ServiceUnavailableError when a server does not come up.
        """
        services = cls()
        services._is_temporary = directory is None
        try:
            services._request(
                directory=None if directory is None else str(directory.expanduser().absolute()),
                owner=os.getpid(),
                postgres=postgres,
                redis=redis,
                durable=durable,
            )
        except BaseException:  # Ctrl-C included: no servers without a handle to stop them
            services.stop()
            raise
        return services

    @property
    def database_url(self) -> str:
        """The URL of an empty database, for psycopg and SQLAlchemy; it contains the password.

        Raises ConfigurationError when started with ``postgres=False``.
        """
        return self._url("database_url", "Postgres")

    @property
    def redis_url(self) -> str:
        """The URL of Redis' database 0 of 1024; it contains the password.

        Raises ConfigurationError when started with ``redis=False``.
        """
        return self._url("redis_url", "Redis")

    @property
    def directory(self) -> Path:
        """Where the data and the logs (`postgres.log`, `redis.log`) are."""
        return Path(self._status["directory"])

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor."""
        return self._supervisor.pid

    @property
    def postgres(self) -> "PostgresHandle":
        """Stop, start and restart Postgres alone."""
        return PostgresHandle(self)

    @property
    def redis(self) -> "RedisHandle":
        """Stop, start and restart Redis alone."""
        return RedisHandle(self)

    def stop(self) -> None:
        """Stop both servers and remove a temporary directory; no-op when stopped, or in a forked process."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            was_running = self._supervisor.poll() is None
            self._close_pipes()
            try:
                self._supervisor.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._supervisor.kill()
                self._supervisor.wait()
            if not was_running or self._supervisor.returncode != 0:
                self._clean_up_after_supervisor()

    def __enter__(self) -> "Services":
        """Return the services."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop them."""
        self.stop()

    def _url(self, key: str, server: str) -> str:
        url = self._status.get(key)
        if url is None:
            raise ConfigurationError(f"{server} was not started with these services")
        return str(url)

    def _pid(self, server: str) -> int | None:
        if self._supervisor.poll() is not None:
            return None
        self._request(server=server, action="status", mode="fast")
        pid: int | None = self._status["pids"][server]
        return pid

    def _request(self, **request: Any) -> None:
        """Send one request and take over the status in its answer; raise the error in it."""
        if os.getpid() != self._owner:
            raise ConfigurationError(f"these services belong to process {self._owner}, this is its fork")
        with self._lock:
            answer = self._exchange({"number": next(self._numbers), **request})
        error = answer.pop("error")
        if error is not None:
            raise _ERRORS[error](answer["message"])
        self._status = answer

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._supervisor.stdin, self._supervisor.stdout
        assert stdin is not None
        assert stdout is not None
        if not stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(f"{json.dumps(request)}\n")
                stdin.flush()
                for line in stdout:
                    answer: dict[str, Any] = json.loads(line)
                    # Another number answers a request whose caller was interrupted (Ctrl-C).
                    if answer["number"] == request["number"]:
                        return answer
        raise ServiceUnavailableError("the embedded Postgres and Redis have stopped: no supervisor runs")

    def _close_pipes(self) -> None:
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def _clean_up_after_supervisor(self) -> None:
        """Remove the temporary directory of a supervisor that was killed, once its servers are gone."""
        if not self._is_temporary or not self._status:
            return
        deadline = time.monotonic() + _GONE_TIMEOUT
        while any(map(_is_alive, self._status["pids"].values())) and time.monotonic() < deadline:
            time.sleep(0.01)
        shutil.rmtree(self.directory, ignore_errors=True)


class PostgresHandle:
    """Postgres alone, for tests of what happens when it goes away. The port stays the same."""

    def __init__(self, services: Services) -> None:
        """Use `Services.postgres`."""
        self._services = services

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster, None when it does not run."""
        return self._services._pid("postgres")

    def stop(self, mode: ShutdownMode = "fast") -> None:
        """End all connections and stop: "fast" writes a checkpoint, "immediate" is a crash.

        Raises ConfigurationError when started with ``postgres=False``.
        """
        self._services._request(server="postgres", action="stop", mode=mode)

    def start(self) -> None:
        """Start again, no-op when it runs. Raises ServiceUnavailableError when it does not come up."""
        self._services._request(server="postgres", action="start", mode="fast")

    def restart(self, mode: ShutdownMode = "fast") -> None:
        """Stop in `mode`, then start. Raises as `stop` and `start`."""
        self._services._request(server="postgres", action="restart", mode=mode)


class RedisHandle:
    """Redis alone, for tests of what happens when it goes away. It keeps its port and loses its data."""

    def __init__(self, services: Services) -> None:
        """Use `Services.redis`."""
        self._services = services

    @property
    def pid(self) -> int | None:
        """The process id, None when it does not run."""
        return self._services._pid("redis")

    def stop(self) -> None:
        """Kill it, as a crash does. Raises ConfigurationError when started with ``redis=False``."""
        self._services._request(server="redis", action="stop", mode="fast")

    def start(self) -> None:
        """Start again and empty, no-op when it runs.

        Raises ServiceUnavailableError when it does not come up.
        """
        self._services._request(server="redis", action="start", mode="fast")

    def restart(self) -> None:
        """Kill it and start it empty. Raises as `stop` and `start`."""
        self._services._request(server="redis", action="restart", mode="fast")


def _environment() -> dict[str, str]:
    """Return an environment in which the supervisor finds this very package, also in a source tree."""
    if str(_PACKAGE_ROOT) in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(os.environ)
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's: alive
    return True
