"""The directory of one set of services: who owns it, and what the next start has to know."""

import fcntl
import json
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from pickaxe.errors import ConfigurationError


def _random_password() -> str:
    return secrets.token_hex(24)  # hexadecimal: needs no quoting in SQL, URLs or Redis' configuration


@dataclass
class State:
    """What stays the same from start to start, so that URLs do."""

    postgres_password: str = field(default_factory=_random_password)
    redis_password: str = field(default_factory=_random_password)
    postgres_port: int | None = None
    redis_port: int | None = None


class ServiceDirectory:
    """A directory that one supervisor owns while it runs.

    The lock is the kernel's, so it ends with its holder however that ends; the number in the
    file only serves the message to whoever comes second.
    """

    def __init__(self, path: Path | None, owner: int) -> None:
        """Take the directory `path`, None for a temporary one, in the name of process `owner`.

        Raises ConfigurationError when another process has it.
        """
        self._is_temporary = path is None
        if path is None:
            path = Path(tempfile.mkdtemp(prefix="pickaxe-services-"))
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = path.resolve()
        self._lock = self._take(owner)
        self.state = self._load()

    def save(self) -> None:
        """Write the state, readable for the owner alone."""
        new = self._state_file().with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(self.state), indent=2))
        new.replace(self._state_file())

    def close(self) -> None:
        """Give the directory back, and remove it when it is temporary."""
        if self._is_temporary:
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    def _take(self, owner: int) -> IO[str]:
        lock = (self.path / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with lock:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
            raise ConfigurationError(
                f"{self.path} is in use: process {holder} runs its Postgres and Redis. "
                "Stop that process or choose another directory."
            ) from None
        lock.truncate(0)
        lock.write(f"{owner}\n")
        lock.flush()
        return lock

    def _state_file(self) -> Path:
        return self.path / "services.json"

    def _load(self) -> State:
        try:
            return State(**json.loads(self._state_file().read_text()))
        except FileNotFoundError:
            return State()
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{self._state_file()} is not readable ({error}): move {self.path} away and start again"
            ) from error
