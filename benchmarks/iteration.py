"""What an iteration costs, stage by stage, and what SD-Search adds to GRPO.

    python benchmarks/iteration.py [--size mini] [--size large] [--iterations 6] [--results benchmarks/README.md]

Each way trains in a process of its own. The learning rate is so small that the weights stay what they are, so GRPO and
SD-Search meet the same rollouts and are compared iteration by iteration; the first iteration, which loads libraries, is
left out. `around` is what passes between a stage's end and the next one's start: ledger, database, Prefect.
`large` is the mini policy widened to 135 million parameters (benchmarks/widened.py), with few rollouts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results import machine, put_results
from widened import save_widened

from schemas.records.ledger import StageKey
from storage.storage import Storage
from storage.workspace import Workspace

STAGES = ("sample", "score", "hindsight", "teacher", "update")
COLUMNS = (*STAGES, "around", "iteration")
RUN = "run"
SAME_POLICY = ["update.learning_rate=1e-30", "distillation.warmup_iterations=0", "evaluation.num_questions=1"]
SIZES = {"mini": [], "large": ["data.questions_per_iteration=2", "update.rollouts_per_step=10"]}


@dataclass(frozen=True)
class Way:
    """One way to train."""

    name: str
    overrides: tuple[str, ...]
    with_prefect: bool = False


GRPO = Way("GRPO", ("distillation.enabled=false",))
SD_SEARCH = Way("SD-Search", ())
PREFECT = Way("SD-Search, Prefect", (), with_prefect=True)


def main() -> None:
    options = read_options()
    lines = [f"`python benchmarks/iteration.py --iterations {options.iterations}`, {machine()}"]
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size or list(SIZES):
            lines += ["", *measure(size, Path(folder), options.iterations)]
    print("\n".join(lines))
    if options.results:
        put_results(options.results, "iteration", lines)


def measure(size: str, folder: Path, iterations: int) -> list[str]:
    """Return a size's table and what it says, as lines of markdown."""
    overrides = [*SAME_POLICY, *SIZES[size], f"iterations={iterations}", f"evaluation.every={iterations}"]
    if size == "large":
        save_widened(folder / "widened")
        overrides.append(f"model.path={folder / 'widened'}")
    ways = [GRPO, SD_SEARCH, *([PREFECT] if size == "mini" else [])]
    seconds = {}
    for number, way in enumerate(ways):
        train(way, folder / f"{size}-{number}", overrides)
        seconds[way.name] = seconds_of(folder / f"{size}-{number}", iterations)
        print(f"{size}, {way.name}: {len(seconds[way.name])} iterations", file=sys.stderr, flush=True)
    return [f"**{size}**, seconds, mean ± standard deviation over iterations", "", *table(seconds), "", *said(seconds)]


def train(way: Way, workspace: Path, overrides: Sequence[str]) -> None:
    """Train in a process of its own; raises CalledProcessError when it fails."""
    words = ["train", "quickstart", "--run", RUN, "--workspace", str(workspace)]
    words += [] if way.with_prefect else ["--no-prefect"]
    words += [word for override in (*overrides, *way.overrides) for word in ("--set", override)]
    environment = {**os.environ, "PREFECT_HOME": str(workspace / "prefect"), "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("PREFECT_API_URL", None)
    subprocess.run([sys.executable, "-m", "flows.app", *words], check=True, env=environment, stdout=subprocess.DEVNULL)


def seconds_of(workspace: Path, iterations: int) -> list[dict[str, float]]:
    """Return the seconds of each iteration from the second on, by column."""
    ledger = Storage(Workspace.open(workspace)).ledger
    found = []
    for iteration in range(2, iterations + 1):
        records = [ledger.done(StageKey(run=RUN, iteration=iteration, stage=stage)) for stage in STAGES]
        before = ledger.done(StageKey(run=RUN, iteration=iteration - 1, stage="update"))
        assert before is not None, "the run is done"
        assert all(records), "the run is done"
        whole = (records[-1].finished_at - before.finished_at).total_seconds()
        stages = {stage: record.duration_s for stage, record in zip(STAGES, records, strict=True)}
        found.append({**stages, "around": whole - sum(stages.values()), "iteration": whole})
    return found


def table(seconds: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return a row a way."""
    rows = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, iterations in seconds.items():
        cells = [spread([each[column] for each in iterations]) for column in COLUMNS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def said(seconds: dict[str, list[dict[str, float]]]) -> list[str]:
    """Return what SD-Search adds to the stages' work, and what stands around it."""
    pairs = list(zip(seconds[SD_SEARCH.name], seconds[GRPO.name], strict=True))
    added = [100 * (work(ours) / work(plain) - 1) for ours, plain in pairs]
    lines = [f"SD-Search adds {spread(added, 1)} % to the work of an iteration of GRPO."]
    for name, iterations in seconds.items():
        share = [100 * (each["around"] + each["score"] + each["hindsight"]) / each["iteration"] for each in iterations]
        a_stage = [1000 * each["around"] / len(STAGES) for each in iterations]
        lines.append(
            f"{name}: scoring, hindsight and all that stands around the stages take {spread(share, 1)} % of an "
            f"iteration; around one stage {spread(a_stage, 0)} ms."
        )
    return lines


def work(seconds: dict[str, float]) -> float:
    return sum(seconds[stage] for stage in STAGES)


def spread(values: Sequence[float], digits: int = 3) -> str:
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=list(SIZES), help="both when not given")
    parser.add_argument("--iterations", type=int, default=6, help="three or more")
    parser.add_argument("--results", type=Path, help="a markdown file whose marked section the results replace")
    options = parser.parse_args()
    if options.iterations < 3:
        parser.error("--iterations: expected 3 or more, since the first is left out and a spread needs two")
    return options


if __name__ == "__main__":
    main()
