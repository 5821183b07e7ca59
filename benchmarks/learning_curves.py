"""Learning curves of shipped settings over seeds: trains what is missing, prints what the databases hold.

    python benchmarks/learning_curves.py --workspace /tmp/curves [--configs quickstart quickstart_grpo] [--seeds 0 1 2]

Each settings file gets a workspace of its own below the given folder, so that several can be trained side by side.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from flows.report import SilentReporter
from flows.settings import load_settings
from flows.train import open_stores, train_plain

_COLUMNS = ("greedy EM", "sampled EM", "search quality", "searches", "valid format")
_SAMPLED_FIGURES = ("search_quality", "searches_per_rollout", "valid_share")


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--configs", nargs="+", default=["quickstart", "quickstart_grpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    arguments = parser.parse_args()
    for config in arguments.configs:
        folder = arguments.workspace / config
        for seed in arguments.seeds:
            settings = load_settings(config, [*arguments.overrides, f"seed={seed}"])
            train_plain(settings, f"{config}-{seed}", folder, SilentReporter())
        print_curve(config, folder)


def print_curve(config: str, folder: Path) -> None:
    """Print one row an evaluation: mean over the seeds and, in brackets, the standard deviation."""
    rows = (
        open_stores(folder)
        .database.query(
            "SELECT run, updates_done, mode, em, search_quality, searches_per_rollout, valid_share FROM evaluations"
        )
        .to_pylist()
    )
    runs = sorted({row["run"] for row in rows})
    print(f"\n{config}: {len(runs)} seeds\n")
    print(f"| updates | {' | '.join(_COLUMNS)} |\n|{'---|' * (len(_COLUMNS) + 1)}")
    for updates in sorted({row["updates_done"] for row in rows}):
        of_mode = {
            mode: [row for row in rows if (row["updates_done"], row["mode"]) == (updates, mode)]
            for mode in ("greedy", "sampled")
        }
        figures = [
            [row["em"] for row in of_mode["greedy"]],
            [row["em"] for row in of_mode["sampled"]],
            *([row[name] for row in of_mode["sampled"]] for name in _SAMPLED_FIGURES),
        ]
        print(f"| {updates} | {' | '.join(_shown(values) for values in figures)} |")


def _shown(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ({spread:.3f})"


if __name__ == "__main__":
    main()
