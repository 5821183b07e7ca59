"""Run what the documentation shows: `python -m tests.docs.run [--write] [--sessions first,none]`.

Each block of README.md and below docs/ that shows a command is run again, and what is printed is compared in form: the
same words, columns and number of rows. The exit code is 1 when a block shows something else; `--write` puts what was
printed in its place.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from tests.docs.blocks import Block, read_blocks
from tests.docs.form import is_like, rewritten
from tests.docs.session import ROOT, Session


class Made(NamedTuple):
    """A block, and what its commands printed now."""

    block: Block
    printed: list[list[str]]

    @property
    def differences(self) -> list[str]:
        """What the page shows otherwise, a text a command; empty for nothing."""
        return [
            "\n".join([step.command, *difflib.unified_diff(step.output, printed, "page", "printed", lineterm="", n=1)])
            for step, printed in zip(self.block.steps, self.printed, strict=True)
            if not is_like(step.output, printed, rows_vary=self.block.rows_vary)
        ]

    @property
    def lines(self) -> list[str]:
        """The block's new content."""
        lines: list[str] = []
        for step, printed in zip(self.block.steps, self.printed, strict=True):
            lines += [*step.typed, *rewritten(step.output, printed)]
        return lines


def pages() -> list[Path]:
    """Return what is read by people."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(sessions: Collection[str] | None = None) -> list[Block]:
    """Return all blocks that are run, those of a session together; `sessions` are all when not given."""
    found = [block for page in pages() for block in read_blocks(page)]
    return sorted((b for b in found if sessions is None or b.session in sessions), key=lambda b: b.session)


def make(blocks: list[Block], folder: Path, *, within: bool) -> Iterator[Made]:
    """Run blocks, session by session, each in a folder below `folder`."""
    for name, members in groupby(blocks, key=lambda block: block.session):
        with Session(folder / name, within=within) as session:
            for block in members:
                yield Made(block, session.run(block))


def write(made: list[Made]) -> None:
    """Put what was printed into the pages."""
    for page in {item.block.page for item in made}:
        lines = page.read_text(encoding="utf-8").splitlines()
        own = [item for item in made if item.block.page == page]
        for item in sorted(own, key=lambda item: item.block.first, reverse=True):
            lines[item.block.first : item.block.last] = item.lines
        page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Compare or write; the exit code is 1 when a page shows something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sessions", help="names, with commas between; all when not given")
    arguments = parser.parse_args()
    made: list[Made] = []
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        names = arguments.sessions and arguments.sessions.split(",")
        for item in make(blocks_of(names), Path(folder), within=False):
            made.append(item)
            verdict = "differs" if item.differences else "as shown"
            print(f"{item.block} ({item.block.session}): {verdict}, {time.monotonic() - started:.0f} s", flush=True)
            print(*item.differences, sep="\n", end="\n" if item.differences else "")
    if arguments.write:
        write(made)
    return int(any(item.differences for item in made) and not arguments.write)


if __name__ == "__main__":
    sys.exit(main())
