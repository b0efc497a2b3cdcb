"""Puts the fleet that comes with Pickaxe into the wheel, as `pickaxe/_template/`.

Not by `force-include`: an editable install would get a frozen copy of it beside the checkout.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLEET = ("documents", "integrations", "tasks", "toolbox", "workers")


class TemplateHook(BuildHookInterface):  # type: ignore[type-arg] # its configuration is of no interest here
    """See the module."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a wheel; a checkout, editable or not, is its own template."""
        if version == "editable":
            return
        build_data["force_include"].update({folder: f"pickaxe/_template/{folder}" for folder in FLEET})
