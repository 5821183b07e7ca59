"""What the documentation shows is what the commands print, in form; `make docs-check` runs the long ones too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, read_blocks
from tests.docs.form import is_like, rewritten
from tests.docs.run import Made, blocks_of, make, pages

FAST = ("doctor", "first", "questions")
"""Sessions that take seconds."""


@pytest.mark.long
def test_what_is_shown_is_printed(tmp_path: Path) -> None:
    made = list(make(blocks_of(FAST), tmp_path, within=True))
    assert {item.block.session for item in made} == set(FAST)
    assert [f"{item.block}: {text}" for item in made for text in item.differences] == []


def test_every_block_that_shows_a_command_says_how_it_is_made() -> None:
    sessions = {block.session for page in pages() for block in read_blocks(page)}
    assert sessions > set(FAST)


def page_of(tmp_path: Path, text: str) -> list[Block]:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return read_blocks(page)


def test_a_block_is_read_with_its_comment(tmp_path: Path) -> None:
    text = "<!-- output: one; rows vary\nbefore: touch a; touch b\n-->\n\n```\n$ echo 'x\ny'\nx\n\n$ ls\na b\n```\n"
    (block,) = page_of(tmp_path, text)
    assert (block.session, block.before, block.rows_vary) == ("one", ("touch a; touch b",), True)
    assert [step.command for step in block.steps] == ["echo 'x\ny'", "ls"]
    assert [step.output for step in block.steps] == [("x", ""), ("a b",)]


def test_a_command_without_a_comment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"page.md:2 shows a command"):
        page_of(tmp_path, "```\n$ ls\n```\n")
    assert page_of(tmp_path, "<!-- shown, not run: it takes a year -->\n```\n$ ls\n```\n") == []
    assert page_of(tmp_path, "```\nno command\n```\n") == []


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("EM 0.385, 2.01 searches", "EM 0.4, 1 searches"),
        ("4.7 s, about 3 min 56 s left", "1 min 2 s, about 0.0 s left"),
        ("run quickstart-20261122-184943 done", "run quickstart-20270101-000000 done"),
        ("its sha256 is fded8cf2…, …", f"its sha256 is {'0a' * 32}, expected more"),
        ("a\n…\nz", "a\nb\nc\nz"),
        ("error: one line", "error: one\nline"),
        ("   a     b\n ──────────\n   1   0.2", "   a   b\n ───────\n  -1   3"),
    ],
)
def test_equal_in_form(shown: str, printed: str) -> None:
    assert is_like(shown.splitlines(), printed.splitlines())


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("EM 0.385", "F1 0.385"),
        ("a   b\n─────\n1   2", "a   b\n─────\n1   2\n3   4"),
        ("a   b\n─────\n1   2", "b   a\n─────\n1   2"),
        ("a\n…\nz", "a\nb\nc"),
        ("done", "done\nwarning: odd"),
    ],
)
def test_other_in_form(shown: str, printed: str) -> None:
    assert not is_like(shown.splitlines(), printed.splitlines())


def test_rows_that_vary_still_have_their_columns() -> None:
    shown = "a   b\n─────\n1   x\n2   y\n\nend".splitlines()
    assert is_like(shown, "a   b\n─────\n7   q\n\nend".splitlines(), rows_vary=True)
    assert not is_like(shown, "a   c\n─────\n7   q\n\nend".splitlines(), rows_vary=True)


def test_what_was_printed_takes_its_place_and_what_is_left_out_stays_so(tmp_path: Path) -> None:
    assert rewritten(["EM 0.1"], ["EM 0.2"]) == ["EM 0.2"]
    shown = ["iteration 1/9 EM 0.1", "…", "iteration 5/9 EM 0.1", "hash abc…"]
    printed = [f"iteration {number}/9 EM 0.{number}" for number in range(1, 10)]
    assert rewritten(shown, printed) == ["iteration 1/9 EM 0.1", "…", "iteration 5/9 EM 0.5", "hash abc…"]
    (block,) = page_of(tmp_path, "<!-- output: one -->\n```\n$ a\n\nx 1\n\n$ b\n```\n")
    assert Made(block, [["x 2"], []]).lines == ["$ a", "", "x 2", "", "$ b"]
