"""The embedded Redis: memory only, for a broker whose content Postgres can rebuild."""

import os
import signal
import socket
import subprocess
from pathlib import Path

from pickaxe.embedded._server import LOOPBACK, Server
from pickaxe.embedded._wheels import ServerUser

_ANSWER_TIMEOUT = 1.0  # seconds
_SETTINGS = {
    "bind": LOOPBACK,
    "protected-mode": "yes",
    "daemonize": "no",
    "databases": "1024",  # every test of a suite can have its own
    "save": '""',
    "appendonly": "no",
    "maxmemory-policy": "noeviction",
}


class RedisServer(Server):
    """A Redis without persistence, reachable over loopback with a password only."""

    name = "Redis"
    death_signal = signal.SIGKILL

    def __init__(
        self,
        program: Path,
        data: Path,
        log: Path,
        user: ServerUser | None,
        port: int | None,
        *,
        password: str,
    ) -> None:
        """Prepare a server. program: `redis-server`."""
        super().__init__(data, log, user, port)
        self._program = program
        self._password = password

    def initialise(self) -> None:
        """Create the working directory."""
        self.data.mkdir(mode=0o700, exist_ok=True)
        if self.user is not None:
            os.chown(self.data, self.user.uid, self.user.gid)

    def stop(self) -> None:
        """Stop it as a crash does: there is nothing to save."""
        self.end(signal.SIGKILL)

    def _command(self) -> list[str]:
        return [str(self._program), "-"]

    def _configuration(self) -> bytes:
        # From standard input: other users can read command lines, and the password is part of it.
        settings = {**_SETTINGS, "port": str(self.port), "requirepass": self._password}
        return "".join(f"{name} {value}\n" for name, value in settings.items()).encode()

    def _is_ready(self, process: subprocess.Popen[bytes]) -> bool:
        # Another server on the port does not know the password.
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=_ANSWER_TIMEOUT) as connection:
                connection.sendall(f"AUTH {self._password}\r\n".encode())
                return process.poll() is None and connection.recv(64).startswith(b"+OK")
        except OSError:
            return False
