"""`sdsearch mini build`: the mini policy made again from the embedded world."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flows.console.errors import UserError
from flows.console.terminal import format_seconds, make_table, print_line
from flows.run.model_files import model_folder
from flows.settings.model_folder import MODEL_SETTINGS, local_folder
from schemas.commands import command
from schemas.paths import local_path
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.world.build import BuildProgress, MiniFigures, build_mini, measure_mini, train_reader
from sdsearch.world.probe import Estimate
from sdsearch.world.tool_calls import MAX_NEW_TOKENS, give_template, measure_tool_calls, train_tool_calls
from storage.disk.files import write_bytes_atomic
from storage.disk.folders import MANIFEST
from storage.disk.manifest import write_folder_atomic

_STEPS_PER_LINE = 500
_COLUMNS: Final = ("dev", "EM", "F1", "valid format", "searches", "search quality")


def build(folder: Path, seed: int, console: Console, start: str | None = None, num_reading_steps: int = 0) -> None:
    """Build the policy, write it to `folder` as save_pretrained does, and print its figures.

    `start` is a policy to begin with instead of building one, `num_reading_steps` how long it is then trained to read.
    Raises UserError, before the work begins, for a folder that holds something else or cannot be written, and
    WriteFailedError when the disk refuses it at the end.
    """
    target = local_path(folder).resolve()
    _check_target(target)
    started = time.monotonic()
    # The number of threads decides the last bits of sums, and so the weights: the shipped ones were made with one.
    torch.set_num_threads(1)
    with _progress(console) as show:
        if start is None:
            model, tokenizer = build_mini(seed, show)
        else:
            model, tokenizer = _load(start)
        if num_reading_steps:
            train_reader(model, tokenizer, seed, show, num_reading_steps)
        figures = measure_mini(model, tokenizer, seed, show)

    _write(target, model, tokenizer, (local_folder("mini") / MODEL_SETTINGS).read_bytes())
    print_line(console, f"mini policy in {target}, made in {format_seconds(time.monotonic() - started)}")
    print_figures(figures, console)
    print_line(console, f"try it: {command('evaluate', '--policy', str(target))}")


def build_tool_caller(folder: Path, seed: int, console: Console, start: str, num_steps: int) -> None:
    """Teach a mini policy the protocol 'tool_call', write it to `folder`, and print what it does; errors as of `build`.

    start: the policy to begin with, num_steps: how long it is trained on demonstrations in the words of the protocol.
    """
    target = local_path(folder).resolve()
    _check_target(target)
    started = time.monotonic()
    torch.set_num_threads(1)  # As in `build`.
    model, tokenizer = _load(start)
    with _progress(console) as show:
        give_template(model, tokenizer)
        train_tool_calls(model, tokenizer, seed, show, num_steps)
        figures = measure_tool_calls(model, tokenizer, seed)
    settings = (local_folder("mini") / MODEL_SETTINGS).read_text(encoding="utf-8")
    own = re.sub(r"^max_new_tokens = \d+$", f"max_new_tokens = {MAX_NEW_TOKENS}", settings, flags=re.MULTILINE)
    _write(target, model, tokenizer, own.encode())
    print_line(console, f"mini policy in {target}, made in {format_seconds(time.monotonic() - started)}")
    console.print(make_table(_COLUMNS, [(name, *values) for name, values in figures.items()], "calling a tool"))
    words = ("--policy", str(target), "--set", "rollout.protocol=tool_call")
    print_line(console, f"try it: {command('evaluate', *words)}")


def _write(target: Path, model: Any, tokenizer: Any, settings: bytes) -> None:
    def save(path: Path) -> None:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        write_bytes_atomic(path / MODEL_SETTINGS, settings, path)

    write_folder_atomic(target, save, target.parent)


def measure(folder: str, seed: int, console: Console) -> None:
    """Print what a mini policy can do; raises UserError for a folder that holds none."""
    torch.set_num_threads(1)
    model, tokenizer = _load(folder)
    with _progress(console) as show:
        figures = measure_mini(model, tokenizer, seed, show)
    print_figures(figures, console)


def print_figures(figures: MiniFigures, console: Console) -> None:
    """Print what the policy can do, on the world's names and on invented ones, and how it uses the block."""
    kinds = {
        "greedy": figures.greedy,
        "sampled": figures.sampled,
        "invented names, greedy": figures.renamed_greedy,
        "invented names, sampled": figures.renamed_sampled,
    }
    console.print(make_table(_COLUMNS, [(name, *values) for name, values in kinds.items()], "the plain policy"))
    blocks = figures.blocks
    estimates: dict[str, Estimate] = {f"sampled EM, {kind} block": value for kind, value in blocks.em.items()} | {
        "sampled EM, full minus shuffled labels": blocks.full_minus_shuffled,
        "log-ratio of queries, CORRECT rollouts": blocks.log_ratio_correct,
        "log-ratio of queries, INCORRECT rollouts": blocks.log_ratio_incorrect,
    }
    title = f"with a hindsight block, {blocks.num_groups} groups of mixed outcomes"
    console.print(
        make_table(
            ("figure", "mean", "standard error"), [(n, e.mean, e.standard_error) for n, e in estimates.items()], title
        )
    )


def _load(folder: str) -> tuple[Any, Any]:
    """Return a policy's model and tokenizer; UserError for a folder that holds none."""
    path = model_folder(folder)
    return load_model(path, "float32"), load_tokenizer(path)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[BuildProgress], None]]:
    """Give what shows the build's progress: a bar, or a plain line now and then where output is no terminal."""
    if not console.is_terminal:
        yield lambda progress: _print_progress(progress, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=300.0) as bars:
        bar = bars.add_task("", loss="")

        def show(progress: BuildProgress) -> None:
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
            bars.update(bar, description=progress.stage, completed=progress.done, total=progress.total, loss=loss)

        yield show


def _print_progress(progress: BuildProgress, console: Console) -> None:
    if progress.loss is None:
        print_line(console, f"{progress.stage} {progress.done}/{progress.total}")
    elif progress.done % _STEPS_PER_LINE == 0 or progress.done == progress.total:
        print_line(console, f"{progress.stage} {progress.done}/{progress.total}, loss {progress.loss:.3f}")


def _check_target(target: Path) -> None:
    """Refuse a folder whose files would be lost, or that cannot be made."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; name a folder with --out")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UserError(f"{target} holds files that are no mini policy; name a new folder with --out")
    nearest = next(path for path in (target, *target.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"{target} cannot be written ({nearest} is no folder that you may write); choose another --out")
