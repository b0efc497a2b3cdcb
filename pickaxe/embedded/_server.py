"""One server process: start it on a free port, wait until it answers, stop it."""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from pickaxe.embedded._wheels import ServerUser
from pickaxe.errors import ServiceUnavailableError

LOOPBACK = "127.0.0.1"
START_TIMEOUT = 60.0  # seconds; recovery after a crash is part of it
STOP_TIMEOUT = 30.0  # seconds until a server that does not end is killed
POLL_INTERVAL = 0.01  # seconds

# Below the ports that systems hand to outgoing connections (Linux 32768, macOS 49152): while a
# server is down, a client that retries must not be given the server's own port as its source port.
_PORTS = range(15_000, 32_000)
_PORT_ATTEMPTS = 20
_SAME_PORT_ATTEMPTS = 50
_SAME_PORT_PAUSE = 0.2  # seconds
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Server(ABC):
    """A server process. The first start chooses the port, later starts keep it."""

    name: str
    death_signal: signal.Signals

    def __init__(self, data: Path, log: Path, user: ServerUser | None, port: int | None) -> None:
        """Prepare a server.

        data: its directory, and its working directory.
        log: the file that gets its output.
        user: the account that runs it, None for ours.
        port: the port to try first.
        """
        self.data = data
        self.log = log
        self.user = user
        self.port = port or 0
        self._port_is_settled = False
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, None when the server does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers; no-op when it runs.

        Raises ServiceUnavailableError with the end of its log when it does not come up.
        """
        if self.pid is not None:
            return
        for port in self._ports_to_try():
            self.port = port
            if self._start_on_port():
                self._port_is_settled = True
                return
        raise ServiceUnavailableError(f"{self.name} found no free port, the last one tried was {self.port}")

    def end(self, how: signal.Signals) -> None:
        """Send the signal `how` and wait for the end; no-op when the server does not run."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    @abstractmethod
    def _command(self) -> list[str]:
        """Return the command line for the current port."""

    def _configuration(self) -> bytes:
        """Return what the server reads from its standard input."""
        return b""

    @abstractmethod
    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Tell whether this very process answers."""

    def _ports_to_try(self) -> Iterator[int]:
        if self._port_is_settled:
            for _ in range(_SAME_PORT_ATTEMPTS):
                yield self.port
                time.sleep(_SAME_PORT_PAUSE)
            return
        if self.port and _is_free(self.port):
            yield self.port
        for _ in range(_PORT_ATTEMPTS):
            yield _free_port()

    def _start_on_port(self) -> bool:
        """Start on the current port; False when another process took the port first."""
        log_start = self.log.stat().st_size if self.log.exists() else 0
        self._process = self._spawn()
        try:
            self._wait_until_ready(self._process)
        except ServiceUnavailableError:
            self.end(signal.SIGKILL)
            if b"Address already in use" in self.log.read_bytes()[log_start:]:
                return False
            raise
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = spawn(self._command(), self, stdin=subprocess.PIPE, stdout=log, stderr=log)
        assert process.stdin is not None
        # A broken pipe: it ended already, and the wait for its answer says why.
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write(self._configuration())
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready(process):
            if process.poll() is not None:
                raise ServiceUnavailableError(
                    f"{self.name} ended while starting (exit code {process.returncode}). Its log ends:\n"
                    f"{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise ServiceUnavailableError(
                    f"{self.name} did not answer within {START_TIMEOUT:.0f} s. Its log ends:\n{self.log_tail()}"
                )
            time.sleep(POLL_INTERVAL)


def spawn(command: list[str], server: Server, *, stdin: int, stdout: object, stderr: object) -> subprocess.Popen[bytes]:
    """Start a program of `server` in its directory and as its user; it ends when this process ends.

    The working directory is entered before the change of user, so the server reaches its data
    even below directories that its user cannot enter.
    """
    user = server.user
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return] # noqa: S603
        command,
        cwd=server.data,
        env={"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"},
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,  # Ctrl-C in the terminal is for our parent alone
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
        preexec_fn=_die_with_parent(server.death_signal),  # safe: the supervisor has one thread
    )


def _die_with_parent(how: signal.Signals) -> Callable[[], None] | None:
    """Return what a child calls before exec, after its change of user (which would reset this)."""
    if sys.platform != "linux":
        return None  # no such call: there the supervisor alone ends the servers
    parent = os.getpid()

    def ask_kernel() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(how), 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return ask_kernel


def _free_port() -> int:
    """Return a port that is free now; another process can still take it before the server does."""
    for _ in range(1000):
        port = secrets.choice(_PORTS)
        if _is_free(port):
            return port
    raise ServiceUnavailableError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Like the servers do: connections of a server that just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
