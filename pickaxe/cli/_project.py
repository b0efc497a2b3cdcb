"""Which app and which services a command works with."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from dotenv import dotenv_values

from pickaxe._durations import seconds
from pickaxe._settings import Settings
from pickaxe.cli._text import console, say
from pickaxe.errors import ConfigurationError

if TYPE_CHECKING:
    from pickaxe.app import Pickaxe
    from pickaxe.client import Client, Run

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_APP = "workers.app:app"
APP_FILE = Path("workers") / "app.py"
DEV_FILE = Path(".pickaxe") / "dev.json"
"""Written by `pickaxe dev` while it runs, so that commands in the same folder, and below it, find its services."""


class BrokenAppError(ConfigurationError):
    """The app cannot be imported."""


@dataclass
class Project:
    """What was given on the command line, and what follows from it."""

    path: str | None = None
    broken: str = ""
    """Why the app cannot be imported, once that has been tried."""

    @cached_property
    def app(self) -> Pickaxe:
        """The app. Raises `ConfigurationError` when there is none."""
        found = self.app_if_any
        if found is None:
            raise ConfigurationError(
                "there is no workers/app.py in this folder or above it: name your app with -A module:attribute or "
                "PICKAXE_APP, or go to the project's folder. `pickaxe dev` here runs the fleet that comes with Pickaxe."
            )
        return found

    @cached_property
    def app_if_any(self) -> Pickaxe | None:
        """The app, or None where none was named and there is no default one."""
        self.use_settings()
        if self.path:
            return load_app(self.path)
        if folder := nearest(APP_FILE):
            return load_app(DEFAULT_APP, folder)
        if dev := _running_dev():
            return load_app(str(dev["app"]), Path(str(dev["folder"])))
        return None

    @cached_property
    def app_if_sound(self) -> Pickaxe | None:
        """As `app_if_any`, for what needs services but no app: None, with a warning, where it cannot be imported.

        Raises `BrokenAppError` when nothing but the app says where the services are.
        """
        try:
            return self.app_if_any
        except BrokenAppError as error:
            if Settings().database_url is None:
                raise
            self.broken = str(error)
            say(("pickaxe: ", "bold yellow"), f"{error}. Going on without it.", to=console(stderr=True))
            return None

    @property
    def name(self) -> str:
        """What to call the app."""
        return self.path or DEFAULT_APP

    @cached_property
    def client(self) -> Client:
        """The app's client, or one made from the environment."""
        from pickaxe.client import Client

        return self.app_if_sound.client if self.app_if_sound is not None else Client(Settings())

    def run(self, name: str) -> Run[Any]:
        """The run with this id, whose id begins like this, or the `latest`."""
        if name == "latest":
            newest = self.client.runs(limit=1)
            name = str(newest[0].id) if newest else name
        handles = self.app_if_sound.handles if self.app_if_sound is not None else {}
        return self.client.run(name, handles)

    def use_settings(self) -> None:
        """The project's `.env`, wherever below it this is; where no services are configured, those of its `dev`."""
        folder = nearest(APP_FILE)
        if not self.path and folder and not Path(".env").exists():
            for name, value in dotenv_values(folder / ".env").items():
                if value is not None and name.startswith("PICKAXE_"):
                    os.environ.setdefault(name, value)
        if Settings().database_url is None and (dev := _running_dev()):
            os.environ["PICKAXE_DATABASE_URL"] = str(dev["database_url"])
            os.environ["PICKAXE_REDIS_URL"] = str(dev["redis_url"])


def nearest(file: Path) -> Path | None:
    """The folder that holds `file`: the working directory, or the next one above it that does.

    Above, only what belongs to this user or to the working directory's owner counts: anybody may leave code in /tmp.
    """
    here = Path.cwd()
    trusted = {os.getuid(), here.stat().st_uid}
    for folder in (here, *here.parents):
        if (folder / file).exists() and (folder == here or (folder / file).stat().st_uid in trusted):
            return folder
    return None


def load_app(path: str, folder: Path | None = None) -> Pickaxe:
    """The app at `module:attribute`, looked for in `folder` (default: the working directory) first."""
    from pickaxe.app import Pickaxe

    module_name, _, attribute = path.partition(":")
    place = str((folder or Path.cwd()).absolute())
    if sys.path[:1] != [place]:
        sys.path.insert(0, place)
    module = _import(module_name, path)
    _must_come_from(place, module, path)
    found = getattr(module, attribute or "app", None)
    if not isinstance(found, Pickaxe):
        what = "is not there" if found is None else f"is a {type(found).__name__}"
        raise ConfigurationError(
            f"-A {path}: {attribute or 'app'!r} {what}, and should be a Pickaxe(...) app in module {module_name!r}"
        )
    return found


def _import(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if last.filename.startswith("<frozen") else f" ({last.filename}, line {last.lineno})"
        raise BrokenAppError(f"the app {path} cannot be imported: {type(error).__name__}: {error}{where}") from error


def _must_come_from(place: str, module: Any, path: str) -> None:
    """Another package of the same name, elsewhere on the path, hides a folder without an `__init__.py`."""
    expected = Path(place, *module.__name__.split(".")).with_suffix(".py")
    if expected.exists() and not Path(module.__file__ or "").samefile(expected):
        raise ConfigurationError(
            f"the app {path} was imported from {module.__file__}, not from {expected}: add the missing __init__.py "
            f"to {expected.parent}"
        )


def _running_dev() -> dict[str, Any] | None:
    try:
        known: dict[str, Any] = json.loads(((nearest(DEV_FILE) or Path()) / DEV_FILE).read_text("utf-8"))
        os.kill(int(known["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return None
    return known


def template() -> Path:
    """The fleet that comes with Pickaxe: packaged in a wheel, the checkout itself otherwise."""
    package = Path(__file__).parents[1]
    packaged = package / "_template"
    folder = packaged if packaged.is_dir() else package.parent
    if not (folder / "workers" / "app.py").exists():
        raise ConfigurationError(f"the fleet that comes with Pickaxe is not in {folder}: reinstall pickaxe")
    return folder


def _set_path(ctx: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Project).path = value


def _app_option(**more: Any) -> Callable[[F], F]:
    return click.option(
        "-A",
        "--app",
        metavar="MODULE:ATTRIBUTE",
        expose_value=False,
        callback=_set_path,
        help=f"The app; default $PICKAXE_APP, then {DEFAULT_APP} of this folder or the next above.",
        **more,
    )


global_app_option = _app_option(envvar="PICKAXE_APP")
app_option = _app_option()


class Duration(click.ParamType):  # type: ignore[type-arg] # generic in newer releases only
    """Seconds, or text such as `90s`, `5m`, `1d12h`."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            return seconds(float(value))
        except ValueError:
            pass
        try:
            return seconds(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)


DURATION = Duration()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
pass_project = click.make_pass_decorator(Project, ensure=True)
