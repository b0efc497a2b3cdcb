"""The wheel, as users get it: built, installed into a fresh environment, and used in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLEET = ("documents", "integrations", "tasks", "toolbox", "workers")
PRIVATE = ("tests", "benchmarks", "hatch_build")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=ROOT)
    [found] = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the wheel in it."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", str(folder), cwd=folder)
    pip = str(folder / "bin" / "pip")
    run(pip, "install", "--quiet", "--disable-pip-version-check", f"{wheel}[dev]", cwd=folder)
    return folder / "bin"


def run(*command: str, cwd: Path, code: int = 0) -> str:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("PICKAXE_", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=outside, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_the_wheel_holds_the_library_and_its_fleet_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"pickaxe"}
    assert "pickaxe/py.typed" in names
    shipped = {
        f"pickaxe/_template/{path.relative_to(ROOT)}"
        for folder in FLEET
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if name.startswith("pickaxe/_template/")} == shipped
    assert {f"pickaxe/{path.relative_to(ROOT / 'pickaxe')}" for path in (ROOT / "pickaxe").rglob("*.sql")} <= names
    assert not [name for name in names if name.endswith(".pyc")]


@pytest.mark.timeout(400)
def test_only_pickaxe_can_be_imported(environment: Path, tmp_path: Path) -> None:
    python = str(environment / "python")
    where = run(python, "-c", "import pickaxe; print(pickaxe.__file__)", cwd=tmp_path)
    assert "site-packages" in where
    for name in (*FLEET, *PRIVATE):
        assert "ModuleNotFoundError" in run(python, "-c", f"import {name}", cwd=tmp_path, code=1)


@pytest.mark.timeout(400)
def test_the_command_line_works_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    pickaxe = str(environment / "pickaxe")
    assert "Start here:" in run(pickaxe, "--help", cwd=tmp_path)
    assert run(pickaxe, "version", cwd=tmp_path).startswith("pickaxe ")


@pytest.mark.timeout(400)
def test_the_demo_runs_from_the_wheel_and_proves_itself(environment: Path, tmp_path: Path) -> None:
    told = run(str(environment / "pickaxe"), "demo", cwd=tmp_path)
    assert "kill -9 worker-" in told
    assert "its worker died" in told
    assert "no recorded step ran twice" in told
    assert "**Apache-2.0**" in told
    assert list(tmp_path.iterdir()) == []
