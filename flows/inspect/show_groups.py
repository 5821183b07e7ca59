"""`sdsearch show RUN ITERATION [GROUP]`: an iteration's groups as a table, one group's siblings with coloured spans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.console.terminal import make_table, plain, print_line, printable
from flows.inspect.colours import NOTICE, STYLES
from flows.inspect.web.formats import number, signed
from flows.inspect.web.groups import groups_page
from flows.inspect.web.siblings import group_page
from flows.inspect.web.source import NotThereError, Row, Source
from schemas.commands import command
from storage.workspace import Workspace

# The shades of log p_teacher - log p_student, from far less to far more likely to the teacher.
_RATIOS: Final = (
    *("white on #b2402f", "black on #cf6a53", "black on #e29582", "black on #efbfb3", "black on #f8e2dc", ""),
    *("black on #dbeaf7", "black on #b3d4ee", "black on #83b9e1", "white on #5599cd", "white on #2f76b2"),
)


def print_groups(workspace: Workspace, run: str, iteration: int, console: Console) -> None:
    """Print a row a group, those with the largest credit first; NotThereError for an iteration without groups."""
    page = groups_page(Source(workspace), run, iteration, {"sort": "credit"})
    if not page["groups"]:
        raise NotThereError(f"run '{run}' has no groups of iteration {iteration}; see: {command('show', run)}")
    columns = ("group", "question", "CORRECT", "reward", "distinct queries", "largest credit")
    rows = [
        (
            group["group_id"],
            group["question"],
            f"{group['num_correct']}/{group['num_rollouts']}",
            number(group["reward_mean"]),
            group["num_distinct_queries"],
            number(group["credit"], 2),
        )
        for group in page["groups"]
    ]
    console.print(make_table(columns, rows, f"iteration {iteration}: {len(rows)} of {page['num_found']} groups"))
    example = page["groups"][0]["group_id"]
    print_line(console, f"one of them: {command('show', run, str(iteration), example, workspace=workspace.root)}")


def print_group(workspace: Workspace, run: str, iteration: int, group_id: str, console: Console) -> None:
    """Print a group: the block, and each sibling's turns with the credit of its query tokens as colours."""
    page = group_page(Source(workspace), run, iteration, group_id)
    group = page["group"]
    golden = " / ".join(group["golden_answers"] or ())
    print_line(console, f"{group['question']}  (golden: {golden})")
    for notice in page["notices"]:
        print_line(console, f"note: {notice}")
    if page["has_credit"]:
        console.print(_legend())
    for sibling in page["siblings"]:
        _print_sibling(sibling, console)
    if page["retries"]:
        console.print(_retries(page["retries"]))
    for block in page["blocks"]:
        console.print(plain("\nwhat the teacher read"))
        console.print(plain(block["text"].rstrip()))


def _retries(retries: Sequence[Row]) -> Table:
    columns = ("retry", "outcome", "reward", "advantage", "queries", "answer")
    rows = [
        (
            retry["rollout_index"],
            retry["outcome"],
            number(retry["reward"]),
            signed(retry["advantage"]),
            " / ".join(retry["queries"]),
            "none" if retry["answer"] is None else retry["answer"],
        )
        for retry in retries
    ]
    return make_table(columns, rows, "retries, sampled with the block; no figure of the group counts them")


def _legend() -> Text:
    text = Text("query tokens: less likely to the teacher ")
    for style in _RATIOS:
        text.append("  ", style or "dim")
    return text.append(" more likely; borders 0.05, 0.2, 0.5, 1, 2 nats")


def _print_sibling(sibling: Row, console: Console) -> None:
    colour = "green" if sibling["outcome"] == "CORRECT" else "red"
    head = Text(f"\n{sibling['rollout_index']} {printable(sibling['outcome'])}", f"bold {colour}")
    head.append(f"  reward {number(sibling['reward'])}, advantage {signed(sibling['advantage'])}", "default")
    console.print(head)
    for turn in sibling["turns"]:
        credit = "" if turn["log_ratio"] is None else f", credit {signed(turn['log_ratio'])}"
        console.print(Text(f"  turn {turn['turn']}: {printable(turn['action'])}{credit}", "dim"))
        console.print(_indented(_turn_text(turn["pieces"], colour)))
        if turn["observation"]:
            console.print(_indented(_observation(turn)))


def _turn_text(pieces: Sequence[Row], colour: str) -> Text:
    text = Text()
    for piece in pieces:
        style = f"bold {colour}" if piece["kind"] == "answer" else STYLES[piece["kind"]]
        if piece["tokens"]:
            for token in piece["tokens"]:
                text.append(
                    printable(token.text), f"bold {_RATIOS[token.shades.ratio] if token.credit else ''}".strip()
                )
        else:
            for part in piece["parts"]:
                text.append(printable(part.text), style)
    return text


def _observation(turn: Row) -> Text:
    """Return a notice whole; of documents the titles, green where they hold a golden answer, and their finders."""
    if turn["observation_kind"] == "notice":
        return Text(printable("".join(part.text for part in turn["observation"]).strip()), NOTICE)
    text = Text("→ ", "dim")
    for index, passage in enumerate(turn["passages"]):
        text.append(" · " if index else "", "dim")
        text.append(printable(passage["title"]), "green" if passage["is_golden"] else "dim")
        text.append(f" ×{passage['num_siblings']}" if passage["num_siblings"] > 1 else "", "dim")
    return text


def _indented(text: Text) -> Text:
    lines = text.split("\n", allow_blank=False)
    return Text("\n").join(Text("    ") + line for line in lines)
