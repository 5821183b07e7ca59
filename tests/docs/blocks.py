"""Blocks of the documentation that show commands and what they print.

Above such a block stands a comment that says how it is made again:

    <!-- output: SESSION; rows vary; keeps running
    before: COMMAND
    -->
    <!-- shown, not run: REASON -->

Blocks of one session are run in the order of the page, in one folder. `before` (none, or several) is a line of shell
that prepares what the page tells in words. `rows vary`: the rows of tables are data that differ between machines.
`keeps running`: the first command serves until the session ends.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

PROMPT: Final = "$ "
_FENCE: Final = "```"
_COMMENT: Final = re.compile(r"<!-- (output|shown, not run): (.+?)\s-->", re.DOTALL)
_BEFORE: Final = "before: "


class Step(NamedTuple):
    """A command, as typed (it may have several lines), and what it prints."""

    typed: tuple[str, ...]
    output: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command without prompts."""
        return "\n".join(self.typed).removeprefix(PROMPT)


class Block(NamedTuple):
    """One block; `first` and `last` are the places of its content among the page's lines."""

    page: Path
    first: int
    last: int
    session: str
    before: tuple[str, ...]
    rows_vary: bool
    keeps_running: bool
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return f"{self.page.name}:{self.first + 1}"


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that are run; ValueError for one that shows a command and has no comment."""
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    for first, last in _fences(lines):
        content = lines[first:last]
        comment = _comment_above(lines, first - 1)
        if comment is None:
            if any(line.startswith(PROMPT) for line in content):
                raise ValueError(f"{page.name}:{first + 1} shows a command; say above it how it is run (tests/docs)")
            continue
        kind, text = comment
        if kind == "output":
            blocks.append(_block(page, first, last, text, content))
    return blocks


def _fences(lines: list[str]) -> Iterator[tuple[int, int]]:
    opened: int | None = None
    for place, line in enumerate(lines):
        if line.startswith(_FENCE):
            if opened is not None:
                yield opened, place
            opened = place + 1 if opened is None else None


def _comment_above(lines: list[str], fence: int) -> tuple[str, str] | None:
    """Return the comment that ends just above a fence; blank lines may stand between."""
    above = fence - 1
    while above >= 0 and not lines[above].strip():
        above -= 1
    begin = above
    while begin >= 0 and "<!--" not in lines[begin] and lines[begin].strip():
        begin -= 1
    found = _COMMENT.fullmatch("\n".join(lines[begin : above + 1])) if begin >= 0 else None
    return (found[1], found[2]) if found else None


def _block(page: Path, first: int, last: int, text: str, content: list[str]) -> Block:
    head, *below = text.splitlines()
    session, *words = [word.strip() for word in head.split(";")]
    before = tuple(line.removeprefix(_BEFORE) for line in below)
    unknown = {line for line in below if not line.startswith(_BEFORE)} | set(words) - {"rows vary", "keeps running"}
    if unknown or not content or not content[0].startswith(PROMPT):
        raise ValueError(f"{page.name}:{first + 1}: {unknown or 'expected a first line with $ and a command'}")
    steps = tuple(_steps(content))
    return Block(page, first, last, session, before, "rows vary" in words, "keeps running" in words, steps)


def _steps(content: list[str]) -> Iterator[Step]:
    """Yield the commands with what follows each up to the next."""
    typed: list[str] = []
    output: list[str] = []
    for line in content:
        if line.startswith(PROMPT):
            if typed:
                yield Step(tuple(typed), tuple(output))
            typed, output = [line], []
        elif not output and not _is_whole("\n".join(typed)):
            typed.append(line)
        else:
            output.append(line)
    yield Step(tuple(typed), tuple(output))


def _is_whole(command: str) -> bool:
    """True when a shell would ask for no further line."""
    if command.endswith("\\"):
        return False
    try:
        shlex.split(command)
    except ValueError:
        return False
    return True
