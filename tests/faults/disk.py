"""A small disk for a server, that a test can fill to the last byte."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


class Disk:
    """A file system of its own. `folder` is where it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, name: str, like: Path) -> Path:
        """A folder on it, of whoever owns `like`."""
        owner, place = like.stat(), self.folder / name
        place.mkdir(mode=0o700)
        os.chown(place, owner.st_uid, owner.st_gid)
        return place

    @contextlib.contextmanager
    def full(self) -> Iterator[int]:
        """Not a byte is free, until the block ends. Gives the number of bytes that it took."""
        ballast = self.folder / "ballast"
        try:
            yield _fill(ballast)
        finally:
            ballast.unlink()


def _fill(ballast: Path) -> int:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while file.write(b"\0" * size) == size:
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast.stat().st_size


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Disk]:
    """Mount one in memory. Skips the test where that is not permitted."""
    with tempfile.TemporaryDirectory(prefix="pickaxe-disk-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server's user must get there
        mounted = _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", name)
        if mounted is not None:
            pytest.skip(f"needs to mount a small disk, and may not: {mounted}")
        try:
            yield Disk(folder)
        finally:
            _run("umount", "--lazy", name)


def _run(*command: str) -> str | None:
    """Why it failed, or None."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        return str(error)
    return None if done.returncode == 0 else (done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
