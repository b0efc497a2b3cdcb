"""The embedded Postgres: initialise its directory once, run it, recover from an unclean end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from pickaxe.embedded._server import LOOPBACK, POLL_INTERVAL, STOP_TIMEOUT, Server, spawn
from pickaxe.embedded._wheels import ServerUser
from pickaxe.errors import ServiceUnavailableError

DATABASE = "pickaxe"
SUPERUSER = "postgres"

SHUTDOWN_SIGNALS: Mapping[str, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_INITIALISE_TIMEOUT = 120.0  # seconds; it takes less than one on a common machine
_ACCESS_RULES = f"host all all {LOOPBACK}/32 scram-sha-256\n"
_READY_LINE = 7  # of postmaster.pid, from 0
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "jit": "off",
    # Inside the data directory, so that a killed server leaves nothing in /dev/shm.
    "dynamic_shared_memory_type": "mmap",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# Not synchronous_commit: without it a crash of Postgres alone, which tests provoke, loses commits.
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


class PostgresServer(Server):
    """A Postgres on one data directory, reachable over loopback TCP with a password only."""

    name = "Postgres"
    death_signal = signal.SIGQUIT  # ends the backends too; SIGKILL would leave them to notice

    def __init__(
        self,
        programs: Path,
        data: Path,
        log: Path,
        user: ServerUser | None,
        port: int | None,
        *,
        durable: bool,
    ) -> None:
        """Prepare a server.

        programs: the directory with `postgres` and `initdb`.
        durable: whether a commit survives a crash of the machine; one of Postgres it always does.
        """
        super().__init__(data, log, user, port)
        self._programs = programs
        self._durable = durable

    def initialise(self, password: str) -> None:
        """Create the data directory with an empty database, unless it exists.

        Raises ServiceUnavailableError with the output of the failing program.
        """
        if self.data.exists():
            return
        final = self.data
        self.data = final.with_name(f"{final.name}.new")  # renamed when complete: never half a cluster
        shutil.rmtree(self.data, ignore_errors=True)
        self.data.mkdir(mode=0o700)
        if self.user is not None:
            os.chown(self.data, self.user.uid, self.user.gid)
        self._create_cluster()
        self._create_database(password)
        self.data = self.data.rename(final)

    def start(self) -> None:
        """Start, after the processes of a killed predecessor are gone. Raises as Server.start."""
        if self.pid is None:
            self._clear_predecessor()
        super().start()

    def stop(self, mode: str = "fast") -> None:
        """Stop, "fast" (checkpoint, clean) or "immediate" (as in a crash)."""
        self.end(SHUTDOWN_SIGNALS[mode])

    def _command(self) -> list[str]:
        return self._postgres({**_SETTINGS, **self._durability(), "port": str(self.port)})

    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        try:
            lines = self._pid_file().read_text().splitlines()
        except FileNotFoundError:
            return False
        is_ours = len(lines) > _READY_LINE and lines[0] == str(process.pid)
        return is_ours and lines[_READY_LINE].strip() == "ready"

    def _durability(self) -> dict[str, str]:
        return {} if self._durable else _NOT_DURABLE

    def _postgres(self, settings: Mapping[str, str], *mode: str) -> list[str]:
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), *mode, "-D", self._data_argument(), *options]

    def _data_argument(self) -> str:
        # Another user may be unable to walk to the directory by its path, but is already in it.
        return "/proc/self/cwd" if self.user is not None and sys.platform == "linux" else str(self.data)

    def _create_cluster(self) -> None:
        # "trust" never takes effect: the access rules are replaced before the server first listens.
        self._run(
            str(self._programs / "initdb"),
            *("-D", self._data_argument(), "-U", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C"),
            # Built in, so text sorts the same on every machine; it also takes a third less time.
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"),
            *(() if self._durable else ("--no-sync",)),
        )
        (self.data / "pg_hba.conf").write_text(_ACCESS_RULES)

    def _create_database(self, password: str) -> None:
        # Iterations slow down guessing weak passwords; ours is long and random, connecting is then faster.
        settings = {**self._durability(), "scram_iterations": "1"}
        statements = f"ALTER USER {SUPERUSER} PASSWORD '{password}'\nCREATE DATABASE {DATABASE}\n"
        self._run(*self._postgres(settings, "--single"), SUPERUSER, text=statements)

    def _run(self, *command: str, text: str = "") -> None:
        pipe = subprocess.PIPE
        with spawn(list(command), self, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
            try:
                output, _ = process.communicate(text.encode(), timeout=_INITIALISE_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
        # Single-user mode reports a failed statement and still ends with code 0.
        if process.returncode != 0 or b"ERROR:" in output:
            tail = "\n".join(output.decode(errors="replace").splitlines()[-15:])
            raise ServiceUnavailableError(
                f"{Path(command[0]).name} failed in {self.data} (exit code {process.returncode}):\n{tail}"
            )

    def _pid_file(self) -> Path:
        return self.data / "postmaster.pid"

    def _clear_predecessor(self) -> None:
        """Wait for processes that a killed server left, then remove its pid file.

        Postgres itself trusts the number in that file, which another process can have by now.
        We hold the lock of the directory, so whatever still runs there is a remainder.
        """
        if not self._pid_file().exists():
            return
        deadline = time.monotonic() + STOP_TIMEOUT
        while remaining := _processes_in(self.data):
            if time.monotonic() > deadline:
                raise ServiceUnavailableError(
                    f"an earlier Postgres in {self.data} does not end: end its processes {remaining}"
                )
            for pid in remaining:
                _send(pid, signal.SIGQUIT)
            time.sleep(POLL_INTERVAL)
        self._pid_file().unlink(missing_ok=True)


def _processes_in(data: Path) -> list[int]:
    import psutil  # here, because only the extra `dev` brings it

    found = psutil.process_iter(["name", "cwd"])
    return [p.pid for p in found if p.info["name"] == "postgres" and p.info["cwd"] == str(data)]


def _send(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # ended meanwhile
        os.kill(pid, how)
