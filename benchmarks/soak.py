"""A long run of very small iterations in one process: what grows that must not?

Trains the mini policy for a few hundred iterations of a second, notes after each its seconds, the process's memory,
open files and threads and the database's size, and fits a line to each. Exits 1 when one grows faster than its limit.

    python benchmarks/soak.py --iterations 300 [--prefect] [--csv soak.csv]
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from rich.console import Console

from flows.console.terminal import make_table
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from schemas.records.ledger import StageKey
from storage.workspace import Workspace

RUN = "soak"
# The first iterations load libraries and fill caches.
WARM_UP = 0.2
SETTINGS = [
    "model.torch_threads=1",
    "data.questions_per_iteration=2",
    "rollout.group_size=3",
    "rollout.max_searches=2",
    "rollout.max_new_tokens=24",
    "evaluation.num_questions=2",
    "evaluation.every=50",
    'evaluation.modes=["greedy"]',
    "storage.keep_checkpoints=2",
]


@dataclass(frozen=True)
class Sample:
    """How the process stands after an iteration."""

    iteration: int
    seconds: float  # of the iteration, without an evaluation
    cpu_seconds: float  # of this process in the iteration, without an evaluation
    memory_mb: float  # resident
    open_files: int
    threads: int
    database_mb: float  # with its log


@dataclass(frozen=True)
class Limit:
    """How much a figure may grow in 100 iterations: so much, or that share of its mean, whichever is more."""

    absolute: float
    share: float


LIMITS = {
    "seconds": Limit(0.0, 0.10),
    "cpu_seconds": Limit(0.0, 0.10),
    "memory_mb": Limit(8.0, 0.01),
    "open_files": Limit(1.0, 0.0),
    "threads": Limit(1.0, 0.0),
}
# The database has to grow, along a line: it may be off it by this share of what it has grown by, or by a few blocks.
MAX_OFF_LINE = 0.1
BLOCKS_MB = 3.0


class Recorder(SilentReporter):
    """Notes a sample after each iteration."""

    def __init__(self, database: Path) -> None:
        self.samples: list[Sample] = []
        self._database = database
        self._started = self._clocks()
        self._evaluating = (0.0, 0.0)
        self._evaluated = (0.0, 0.0)

    def stage_started(self, key: StageKey) -> None:
        """Note when an evaluation begins."""
        self._evaluating = self._clocks() if key.stage == "evaluate" else self._evaluating

    def stage_done(self, record: object, skipped: bool) -> None:
        """Note how long an evaluation took."""
        if getattr(record, "stage", "") == "evaluate":
            now = self._clocks()
            self._evaluated = (now[0] - self._evaluating[0], now[1] - self._evaluating[1])

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        """Note a sample."""
        now = self._clocks()
        # The first iteration's evaluation came before it, where its libraries are loaded too.
        seconds, cpu_seconds = (now[i] - self._started[i] - self._evaluated[i] for i in (0, 1))
        self.samples.append(
            Sample(
                iteration=iteration,
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                memory_mb=resident_bytes() / 1e6,
                open_files=len(os.listdir("/proc/self/fd")),
                threads=len(os.listdir("/proc/self/task")),
                database_mb=size_bytes(self._database) / 1e6,
            )
        )
        print(" ".join(f"{name} {value:.3f}" for name, value in asdict(self.samples[-1]).items()), flush=True)
        self._started, self._evaluated = self._clocks(), (0.0, 0.0)

    @staticmethod
    def _clocks() -> tuple[float, float]:
        return time.monotonic(), time.process_time()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def size_bytes(database: Path) -> int:
    """Return the size of the database with the log beside it."""
    return sum(path.stat().st_size for path in database.parent.glob(f"{database.name}*"))


def soak(workspace: Path, iterations: int, prefect: bool) -> list[Sample]:
    """Train, and return a sample an iteration."""
    overrides = [*SETTINGS, f"iterations={iterations}"]
    opened = Workspace.open(workspace)
    recorder = Recorder(opened.database)
    if not prefect:
        from flows.training.loop import train_plain

        train_plain(load_settings("tiny", overrides), RUN, workspace, recorder)
        return recorder.samples
    from flows.orchestration.prefect_server import prefect_api

    with ExitStack() as stack:
        stack.enter_context(prefect_api(opened))
        from flows.orchestration.train_flow import PrefectRun
        from flows.training.job import open_job

        job = open_job(RUN, workspace, load_settings("tiny", overrides), "tiny", tuple(overrides))
        prefect_run = PrefectRun(job, recorder)
        prefect_run.flow(**prefect_run.parameters)
    return recorder.samples


def slope(values: np.ndarray, iterations: np.ndarray) -> float:
    """Return the growth in 100 iterations by Theil and Sen's estimator, which a few slow iterations do not bend."""
    i, j = np.triu_indices(len(values), k=1)
    return float(100 * np.median((values[j] - values[i]) / (iterations[j] - iterations[i])))


def judge(samples: list[Sample]) -> list[tuple[str, float, float, float, str]]:
    """Return (figure, mean, growth in 100 iterations, limit, verdict) of each."""
    kept = samples[int(len(samples) * WARM_UP) :]
    iterations = np.array([sample.iteration for sample in kept], dtype=float)
    rows = []
    for name, limit in LIMITS.items():
        values = np.array([getattr(sample, name) for sample in kept], dtype=float)
        growth, allowed = slope(values, iterations), max(limit.absolute, limit.share * float(values.mean()))
        rows.append((name, float(values.mean()), growth, allowed, "flat" if growth <= allowed else "GROWS"))
    sizes = np.array([sample.database_mb for sample in kept])
    off_line = float(np.abs(sizes - np.polyval(np.polyfit(iterations, sizes, 1), iterations)).max())
    allowed = max(BLOCKS_MB, MAX_OFF_LINE * float(np.ptp(sizes)))
    verdict = f"{'linear' if off_line <= allowed else 'NOT LINEAR'}: {off_line:.1f} MB off the line"
    rows.append(("database_mb", float(sizes.mean()), slope(sizes, iterations), allowed, verdict))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--prefect", action="store_true", help="as flow runs against a local Prefect server")
    parser.add_argument("--workspace", type=Path, help="a new folder; a temporary one when not given")
    parser.add_argument("--csv", type=Path, help="where to write the samples")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        samples = soak(arguments.workspace or Path(temporary), arguments.iterations, arguments.prefect)
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Sample)])
            writer.writerows(asdict(sample).values() for sample in samples)
    rows = judge(samples)
    columns = ("figure", "mean", "growth in 100 iterations", "limit", "verdict")
    Console(width=120).print(make_table(columns, rows, f"{len(samples)} iterations, the first {WARM_UP:.0%} left out"))
    code = int(any(verdict.split(":")[0].isupper() for *_, verdict in rows))
    # As the command line does: Prefect's threads make the interpreter's own way out noisy.
    sys.stdout.flush()
    os._exit(code) if arguments.prefect else sys.exit(code)


if __name__ == "__main__":
    main()
