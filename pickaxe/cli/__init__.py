"""The command line: `pickaxe --help`."""

from pickaxe.cli._commands import cli, main

__all__ = ["cli", "main"]
