"""The commands `sdsearch config …`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from flows.console.options import ConfigArgument, SetOption, make_console

config_app = typer.Typer(no_args_is_help=True, help="Resolved settings, and where each value comes from.")


@config_app.command("show")
def config_show(
    config: ConfigArgument = "quickstart",
    overrides: SetOption = None,
    everything: Annotated[bool, typer.Option("--all", help="The program's defaults too.")] = False,
    form: Annotated[
        Literal["table", "toml"], typer.Option("--format", help="toml: all settings, as a file that needs no base.")
    ] = "table",
) -> None:
    """Print settings with the base, file, option or model that each value comes from."""
    from flows.settings.show import show_config

    show_config(config, overrides or [], form, everything=everything, console=make_console())


@config_app.command("diff")
def config_diff(
    first: Annotated[str, typer.Argument(help="Name of shipped settings, or the path of a TOML file.")],
    second: Annotated[str, typer.Argument(help="What it is compared with.")],
) -> None:
    """Print the settings in which two files differ, bases and defaults included."""
    from flows.settings.show import compare_configs

    compare_configs(first, second, make_console())


@config_app.command("list")
def config_list() -> None:
    """List the settings that come with the program."""
    from flows.settings.show import list_configs

    list_configs(make_console())
