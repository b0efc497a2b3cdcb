"""The command line without any service: help, versions, and refusals in one sentence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from pickaxe.cli import cli
from pickaxe.cli._project import APP_FILE, nearest

COMMANDS = ["demo", "dev", "worker", "migrate", "run", "runs", "show", "cancel", "signal", "retry", "quarantine"]
COMMANDS += ["resolve", "drop", "doctor", "version"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def pickaxe(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=text, prog_name="pickaxe")


def test_all_commands_are_there() -> None:
    assert sorted(cli.commands) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    result = pickaxe(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"  pickaxe {command}" in result.output


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"demo", "dev", "worker"}))
def test_commands_that_report_can_do_so_in_json(command: str) -> None:
    assert any("--json" in option.opts for option in cli.commands[command].params if isinstance(option, click.Option))


def test_the_exit_codes_are_in_the_help() -> None:
    assert "Exit codes: 0 done; 1" in " ".join(pickaxe("--help").output.split())


def test_version_is_told_for_people_and_programs() -> None:
    assert pickaxe("version").output.startswith("pickaxe ")
    assert json.loads(pickaxe("version", "--json").output)["schema"]


def test_without_a_database_url_the_error_says_what_to_set() -> None:
    result = pickaxe("runs")
    assert result.exit_code == 2
    assert "PICKAXE_DATABASE_URL is not set" in result.output
    assert "`pickaxe dev` brings its own" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mysql://u:secret@h/db", "PICKAXE_DATABASE_URL begins with 'mysql://'"),
        ("redis://:secret@h:6379/0", "PICKAXE_DATABASE_URL begins with 'redis://'"),
        ("postgresql://u:secret@h:port/db", "PICKAXE_DATABASE_URL is not a database URL"),
        ("secret", "PICKAXE_DATABASE_URL is not a database URL"),
    ],
)
def test_a_wrong_database_url_is_named_by_its_setting_and_not_shown(
    url: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PICKAXE_DATABASE_URL", url)
    result = pickaxe("runs")
    assert result.exit_code == 2
    assert expected in result.output
    assert "postgresql://user@host:5432/name" in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("app = 5", "mine:app", "'app' is a int"),
        ("", "mine:app", "'app' is not there"),
        ("import nothing_like_this", "mine", "No module named 'nothing_like_this'"),
        ("def f(:", "mine:app", "SyntaxError"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_one_sentence(
    source: str, path: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = pickaxe("-A", path, "runs")
    assert result.exit_code == 2
    assert expected in result.output
    assert len(result.output.strip().splitlines()) <= 2


def test_another_package_of_the_same_name_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "tool.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = pickaxe("-A", "json.tool:app", "runs")
    assert result.exit_code == 2
    assert "add the missing __init__.py" in " ".join(result.output.split())


def test_run_without_an_app_says_how_to_name_one() -> None:
    result = pickaxe("run", "research", "1")
    assert result.exit_code == 2
    assert "-A module:attribute" in result.output


def test_a_project_is_found_from_below_its_folder_with_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").touch()
    (tmp_path / "workers" / "app.py").write_text("raise RuntimeError('this one')")
    (tmp_path / ".env").write_text("PICKAXE_DATABASE_URL=mysql://from/above\nOTHER=1\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    monkeypatch.setattr(os, "environ", {**os.environ})
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("workers", "workers.app"):
        monkeypatch.setitem(sys.modules, module, sys)  # so that in the end it is as it was, there or not
        del sys.modules[module]
    assert "RuntimeError: this one" in pickaxe("runs").output
    assert os.environ["PICKAXE_DATABASE_URL"] == "mysql://from/above"
    assert "OTHER" not in os.environ
    monkeypatch.setenv("PICKAXE_DATABASE_URL", "mysql://from/the/environment")
    pickaxe("runs")
    assert os.environ["PICKAXE_DATABASE_URL"] == "mysql://from/the/environment"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_project_above_that_somebody_else_has_left_there_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "app.py").write_text("raise RuntimeError('not mine')")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert nearest(APP_FILE) == tmp_path
    os.chown(tmp_path / "workers" / "app.py", 12345, -1)
    assert nearest(APP_FILE) is None
    assert "there is no workers/app.py in this folder or above it" in pickaxe("run", "research", "1").output


def test_unreachable_services_have_their_own_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PICKAXE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    monkeypatch.setenv("PICKAXE_REDIS_URL", "redis://127.0.0.1:1/0")
    result = pickaxe("doctor", "--json")
    assert result.exit_code == 3
    found = json.loads(result.output)
    assert [c["name"] for c in found["checks"] if c["status"] == "problem"] == ["database", "redis"]
    assert "cannot reach Redis at redis://127.0.0.1:1/0 (" in found["checks"][-1]["found"]


def test_an_unforeseen_error_is_still_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from pickaxe.cli._project import Project

    def fail(_: Project) -> None:
        raise RuntimeError("boom \x1b[31m")

    monkeypatch.setattr(Project, "client", property(fail))
    result = pickaxe("runs")
    assert result.exit_code == 70
    assert "RuntimeError: boom \\x1b[31m" in result.output
    assert "PICKAXE_TRACEBACK=1" in result.output
