"""Part d: the quickstart on the device: its curve beside the CPU's, seconds an iteration, and whether bits repeat."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_common import Bench

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.settings.root import Settings

_NO_KERNEL = re.compile(r"(\S+) does not have a deterministic implementation")


class StoppedError(Exception):
    """The run was stopped on purpose."""


class StopAfter(SilentReporter):
    """Ends a run after an iteration, as a failure would."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Stop at the wanted iteration."""
        if iteration == self._iteration:
            raise StoppedError


def run(bench: Bench) -> None:
    """Write a row a seed and device, then what repeats bit by bit, and what the deterministic setting costs."""
    with tempfile.TemporaryDirectory() as folder:
        curves(bench, Path(folder))
        repeats(bench, Path(folder))


def options(bench: Bench, device: str, seed: int, iterations: int) -> list[str]:
    """Return the settings that differ from the shipped ones."""
    return [
        f"model.device={device}",
        f"seed={seed}",
        f"iterations={iterations}",
        f"evaluation.every={iterations}",
        f"evaluation.num_questions={2 if bench.small else 200}",
        *(["model.torch_threads=1", "data.questions_per_iteration=2"] if bench.small else []),
    ]


def config(bench: Bench) -> str:
    return "tiny" if bench.small else "quickstart"


def train(bench: Bench, folder: Path, run: str, words: Sequence[str], stop_after: int = 0) -> str:
    """Train in this process, stopped once and resumed where asked; return the hash of the final weights."""
    settings: Settings = load_settings(config(bench), words)
    if stop_after:
        try:
            train_plain(settings, run, folder, StopAfter(stop_after))
        except StoppedError:
            train_plain(None, run, folder, SilentReporter(), resume=True)
    else:
        train_plain(settings, run, folder, SilentReporter())
    return open_storage(folder).find_run(run).policy_sha256


def curves(bench: Bench, folder: Path) -> None:
    """Train each seed on the device, while the CPU does the same in a process of its own."""
    iterations = 2 if bench.small else 12
    for seed in (0,) if bench.small else (0, 1):
        with bench.case(0.0 if bench.small else 60.0, what="quickstart", seed=seed, device="cpu") as reference:
            if "skip" in reference:
                return
            process = start_reference(bench, folder / "cpu", seed, iterations)
            try:
                with bench.case(what="quickstart", seed=seed, device=str(bench.device)) as row:
                    train(bench, folder, f"seed-{seed}", options(bench, str(bench.device), seed, iterations))
                    row.update(figures(folder, f"seed-{seed}", iterations))
                process.wait(timeout=max(1.0, bench.seconds_left))
            finally:
                process.kill()
                process.wait()
            reference.update(figures(folder / "cpu", f"seed-{seed}", iterations))


def start_reference(bench: Bench, folder: Path, seed: int, iterations: int) -> subprocess.Popen[bytes]:
    """Start the same training on the CPU."""
    words = ["train", config(bench), "--no-prefect", "--run", f"seed-{seed}", "--workspace", str(folder)]
    words += [word for option in options(bench, "cpu", seed, iterations) for word in ("--set", option)]
    return subprocess.Popen([sys.executable, "-m", "flows.app", *words], stdout=subprocess.DEVNULL)


def figures(folder: Path, run: str, iterations: int) -> dict[str, Any]:
    """Return a run's last evaluation, its reward, and the seconds of an iteration from the second on."""
    database = open_storage(folder).database
    rows = database.query(
        "SELECT reward_mean FROM v_iterations WHERE run = $run AND reward_mean IS NOT NULL ORDER BY iteration",
        {"run": run},
    ).to_pylist()
    evaluations = database.query(
        "SELECT mode, em FROM evaluations WHERE run = $run AND iteration = $iteration",
        {"run": run, "iteration": iterations},
    ).to_pylist()
    stages = database.query(
        "SELECT sum(duration_s) AS s FROM stages WHERE run = $run AND iteration > 1 AND stage <> 'evaluate'",
        {"run": run},
    ).to_pylist()
    late = [float(row["reward_mean"]) for row in rows[-4:]]
    return {
        "iterations": len(rows),
        **{f"EM {row['mode']}": float(row["em"]) for row in evaluations},
        "reward, last 4": sum(late) / len(late),
        "s/iteration": float(stages[0]["s"]) / (iterations - 1),
    }


def repeats(bench: Bench, folder: Path) -> None:
    """Train a few iterations again, and stopped and resumed, without and with torch's deterministic algorithms."""
    iterations = 2 if bench.small else 4
    words = options(bench, str(bench.device), 0, iterations)
    for run, what in (("shipped", "as shipped"), ("exact", "deterministic algorithms")):
        with bench.case(0.0 if bench.small else 25.0, what=what, device=str(bench.device)) as row:
            if "skip" in row:
                return
            with deterministic_algorithms(run == "exact") as caught:
                hashes = [train(bench, folder, f"{run}-{number}", words) for number in range(2)]
                resumed = train(bench, folder, f"{run}-resumed", words, stop_after=iterations // 2)
            row["same seed, same bits"] = hashes[0] == hashes[1]
            row["resumed, same bits"] = resumed == hashes[0]
            row["kernels without a deterministic form"] = ", ".join(sorted(kernels_named(caught))) or "none named"
            row["s/iteration"] = figures(folder, f"{run}-1", iterations)["s/iteration"]


@contextmanager
def deterministic_algorithms(on: bool) -> Iterator[list[warnings.WarningMessage]]:
    """Make torch choose kernels that repeat their bits, and give what it warns of where it has none."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # It finds reads of such memory, and costs much.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        torch.use_deterministic_algorithms(on, warn_only=True)
        try:
            yield caught
        finally:
            torch.use_deterministic_algorithms(False)


def kernels_named(caught: Sequence[warnings.WarningMessage]) -> set[str]:
    """Return what torch has warned of."""
    return {found[1] for item in caught if (found := _NO_KERNEL.search(str(item.message)))}
