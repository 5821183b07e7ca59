"""The reference of the command line, made from the program: `python -m tests.docs.command_line --write`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from inspect import unwrap
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import typer

from flows.app import app
from tests.docs.session import ROOT

PAGE: Final = ROOT / "docs" / "reference" / "cli.md"
_WORDS: Final = {int: "integer", float: "number", str: "text", Path: "path"}
_HEAD: Final = """# Command line

Made by `python -m tests.docs.command_line --write`; do not edit. `sdsearch COMMAND --help` prints the same.

Exit codes: 0 for success; 1 for a check that found something missing or different, and for an unexpected error, with a
traceback; 2 for an error that you can correct, with one line; 130, 143 and 129 after Ctrl-C, SIGTERM and a closed
terminal ([signals](signals.md)).
"""


def command_reference() -> str:
    """Return the page: a section for each command, with its arguments and options."""
    return "\n".join([_HEAD, *_sections(typer.main.get_command(app), "sdsearch")])


def _sections(command: Any, name: str) -> Iterator[str]:
    """Yield the section of a command, or those of the commands in a group."""
    below = getattr(command, "commands", {})
    if not below:
        yield _section(command, name)
    for key in below:
        yield from _sections(below[key], f"{name} {key}")


def _section(command: Any, name: str) -> str:
    types = get_type_hints(unwrap(command.callback))
    shown = [parameter for parameter in command.params if parameter.name != "help" and not parameter.hidden]
    rows = "".join(_row(parameter, types[parameter.name]) for parameter in shown)
    table = f"\n| argument or option | value | default | meaning |\n|---|---|---|---|\n{rows}" if rows else ""
    return f"## `{name}`\n\n{' '.join((command.help or '').split())}\n{table}"


def _row(parameter: Any, annotation: Any) -> str:
    is_option = parameter.opts[0].startswith("-")
    opts = [parameter.opts[0] if is_option else parameter.opts[0].upper(), *parameter.secondary_opts]
    name = ", ".join(f"`{opt}`" for opt in opts)
    more = " (may be given several times)" if parameter.multiple and "several times" not in str(parameter.help) else ""
    variable = f" (environment variable `{parameter.envvar}`)" if parameter.envvar else ""
    cells = (name, _value(parameter, annotation), _default(parameter), f"{parameter.help or ''}{more}{variable}")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _value(parameter: Any, annotation: Any) -> str:
    """Return in words what a parameter takes; empty for a flag."""
    if parameter.is_flag if hasattr(parameter, "is_flag") else False:
        return ""
    if parameter.metavar:
        return f"`{parameter.metavar}`"
    if get_origin(annotation) in (Union, UnionType, list):
        (annotation,) = (item for item in get_args(annotation) if item is not type(None))
        return _value(parameter, annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    return _WORDS[annotation]


def _default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    return "" if parameter.default in (None, False, (), []) else f"`{parameter.default}`"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(command_reference(), encoding="utf-8")
    else:
        sys.stdout.write(command_reference())
