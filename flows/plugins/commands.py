"""The command `sdsearch plugins`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.console.options import SetOption, make_console


def plugins(
    config: Annotated[
        str | None, typer.Option("--config", help="Mark the plugins that these settings use: a name, or a TOML file.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """List the rewards and other parts that settings can choose: shipped, installed, and those that --config names."""
    from flows.plugins.show import list_plugins

    list_plugins(config, overrides or [], make_console())
