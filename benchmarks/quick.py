"""What sampling and the signal cost, by ratios and counts a change can be judged by, in a few minutes on any machine.

    python benchmarks/quick.py [--repeats 3] [--results benchmarks/README.md]

One process, one thread, the quickstart's 16 questions x 5 rollouts; all ways by turns, the median of the repeats. Time
is the processor's, not the clock's, so that other work on the machine moves it little, and it is compared within a
repeat: sampling with transformers' `generate`, token by token, and the signal with the sampling and the update that it
stands between. Counts (passes, rows, tokens) do not move at all. Run it before and after a change, on the same machine;
differences of ratios below a tenth are noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from generate_sampler import GenerateSampler
from results import machine, put_results
from torch import nn

from flows.api.method import build_blocks, compute_loss, compute_teacher, roll_out, score_groups
from flows.api.policy import Policy, load_policy
from flows.run.live import Runtime, open_runtime
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.records.question import Question
from sdsearch.model.policy import backbone
from storage.runs.lock import RunLock

WAYS = ("sample", "generate", "teacher", "update")
NUM_QUESTIONS = 16
Counts = dict[str, Counter[str]]
Measured = tuple[dict[str, float], Counts]
"""Of a repeat, by way: seconds of the processor, and what was forwarded and sampled."""


def main() -> None:
    options = read_options()
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder)) as runtime:
        questions = runtime.questions.training[:NUM_QUESTIONS]
        policy = load_policy(runtime.settings)
        _measure(runtime, policy, questions, 0)  # Loads libraries.
        measured = [_measure(runtime, policy, questions, repeat) for repeat in range(options.repeats)]
    lines = [f"`python benchmarks/quick.py --repeats {options.repeats}`, {machine()}", ""]
    lines += [*table(measured), "", *said(measured)]
    print("\n".join(lines))
    if options.results:
        put_results(options.results, "quick", lines)


def _measure(runtime: Runtime, policy: Policy, questions: Sequence[Question], repeat: int) -> Measured:
    """Do each way once; `repeat` draws the rollouts. Return the seconds and what was forwarded, by way."""
    settings, loop = runtime.settings, runtime.rollout_loop(0)
    by_generate = replace(loop, sampler=GenerateSampler(policy.model, policy.tokenizer))
    seconds: dict[str, float] = {}
    counts: Counts = {}

    def timed(way: str, work: Callable[[], Any]) -> Any:
        with counted(policy.model) as forwarded:
            began = time.process_time()
            result = work()
            seconds[way] = time.process_time() - began
        counts[way] = forwarded
        return result

    groups = timed("sample", lambda: roll_out(policy, questions, loop.retriever, iteration=repeat))
    size = settings.rollout.group_size
    draws = {"run_seed": repeat, "iteration": 1, "policy_version": 0, "group_size": size, "temperature": 1.0}
    others = timed("generate", lambda: by_generate.roll_out(questions, **draws))
    for way, drawn in (("sample", groups), ("generate", others)):
        counts[way]["sampled"] = sum(len(each.completion_positions) for group in drawn for each in group.rollouts)
    scores = score_groups(groups, settings)
    blocks = build_blocks(policy, groups, scores)
    teacher = timed("teacher", lambda: compute_teacher(policy, groups, blocks))
    timed("update", lambda: compute_loss(policy, groups, scores, teacher, backward=True))
    policy.model.zero_grad(set_to_none=True)
    return seconds, counts


@contextmanager
def counted(model: nn.Module) -> Iterator[Counter[str]]:
    """Count passes of the policy's decoder, their rows, and their tokens with padding; the reference has its own."""
    counts: Counter[str] = Counter()

    def count(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named["input_ids"] if "input_ids" in named else positional[0]
        counts.update(passes=1, rows=ids.shape[0], tokens=ids.numel())

    hook = backbone(model).register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        hook.remove()


def table(measured: Sequence[Measured]) -> list[str]:
    """Return a row a way: the median of its seconds, their range, and the last repeat's counts."""
    rows = [
        "| | CPU s, median (range) | passes | rows | tokens, padding included | sampled |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        values, seen = [seconds[way] for seconds, _ in measured], measured[-1][1][way]
        spread = f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
        numbers = (seen["passes"], seen["rows"], seen["tokens"], seen["sampled"] or "")
        rows.append(f"| {way} | {spread} | {' | '.join(map(str, numbers))} |")
    return rows


def said(measured: Sequence[Measured]) -> list[str]:
    """Return the ratios, each the median over repeats of what was measured side by side."""
    faster, added = [], []
    for seconds, counts in measured:
        each = {way: seconds[way] / counts[way]["sampled"] for way in ("sample", "generate")}
        faster.append(each["generate"] / each["sample"])
        added.append(seconds["teacher"] / (seconds["sample"] + seconds["update"]))
    return [
        f"A token takes `generate` {statistics.median(faster):.2f} times the sampler's time.",
        f"The teacher stage takes {100 * statistics.median(added):.1f} % of sampling and update together.",
    ]


@contextmanager
def opened(workspace: Path) -> Iterator[Runtime]:
    """Open a run of the quickstart's settings with one thread."""
    settings = load_settings("quickstart", ["model.torch_threads=1"])
    storage = open_storage(workspace, settings)
    lock = RunLock(storage.workspace, "quick")
    with lock, open_runtime(settings, "quick", storage, SilentReporter()) as runtime:
        torch.set_num_threads(1)
        yield runtime


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=Path, help="a markdown file whose marked section the results replace")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats: expected 1 or more")
    return options


if __name__ == "__main__":
    main()
