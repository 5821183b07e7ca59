"""How long the pages of `sdsearch inspect` take on a workspace of 100,000 rollouts.

`python benchmarks/inspect_pages.py [--rollouts 100000] [--workspace FOLDER] [--results benchmarks/README.md]`. A tiny
run is trained for real; its last iteration's rows are then copied, under new names, until the database holds as many
rollouts. Each page is asked for over HTTP in this process: the first time, and the median of ten times after it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

from results import machine, put_results
from starlette.testclient import TestClient

from flows.inspect.web.server import build_app
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from storage.storage import Storage
from storage.workspace import Workspace

SETTINGS = ("data.questions_per_iteration=16", "iterations=1", "distillation.warmup_iterations=0")
GROUPS_AN_ITERATION = 512
COPIED = ("groups", "rollouts", "turns", "searches", "hindsight_blocks", "hindsight_attempts", "teacher_targets")


def main() -> None:
    """Make the workspace, time the pages, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=100_000)
    parser.add_argument("--workspace", type=Path, help="Keep the workspace here, or use the one that is here.")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = options.workspace or Path(folder) / "workspace"
        if not workspace.is_dir():
            make_workspace(workspace, options.rollouts)
        lines = list(time_pages(workspace))
    text = "\n".join(lines)
    print(text)
    if options.results:
        put_results(options.results, "inspect", [machine(), "", *lines])


def make_workspace(workspace: Path, num_rollouts: int) -> None:
    """Train a tiny run and copy its iteration's rows until there are as many rollouts."""
    train_plain(load_settings("tiny", list(SETTINGS)), "large", workspace, SilentReporter())
    storage = open_storage(workspace)
    (small,) = storage.database.query("SELECT count(*) AS n, any_value(len(groups)) AS g FROM rollouts, "
                                      "(SELECT list(group_id) AS groups FROM groups)").to_pylist()  # fmt: skip
    num_copies = GROUPS_AN_ITERATION // small["g"]
    num_iterations = max(1, num_rollouts // (small["n"] * num_copies))
    for iteration in range(2, num_iterations + 2):
        copy_iteration(storage, iteration, num_copies)
    record = storage.ledger.get_run("large")
    storage.update_run(record.model_copy(update={"num_iterations": num_iterations, "iterations_done": num_iterations}))


def copy_iteration(storage: Storage, iteration: int, num_copies: int) -> None:
    """Copy iteration 1's rows into another iteration, each group so many times under ids of its own."""

    def renamed(column: str) -> str:
        return f"{iteration:05d} || '/' || c.i || '-' || {column}".replace(f"{iteration:05d}", f"'{iteration:05d}'")

    with storage.database.transaction() as connection:
        for table in (*COPIED, "query_credit"):
            names = [row[0] for row in connection.execute(f'DESCRIBE "{table}"').fetchall()]
            columns = [
                str(iteration) if name == "iteration" else
                f"block_index + c.i * 100000 AS {name}" if name == "block_index" else
                f"{renamed(name)} AS {name}" if name in ("group_id", "rollout_id") else name
                for name in names
            ]  # fmt: skip
            connection.execute(
                f'INSERT INTO "{table}" BY POSITION SELECT {", ".join(columns)} '
                f'FROM "{table}", range({num_copies}) AS c (i) WHERE iteration = 1'
            )
        for table in ("iteration_metrics", "update_metrics", "stages"):
            connection.execute(
                f'INSERT INTO "{table}" SELECT * REPLACE ({iteration} AS iteration) FROM "{table}" WHERE iteration = 1'
            )


def time_pages(workspace: Path):
    """Yield a Markdown table: each page, its first and its median time, its size."""
    storage = open_storage(workspace)
    (sizes,) = storage.database.query(
        "SELECT (SELECT count(*) FROM rollouts) AS rollouts, (SELECT count(*) FROM turns) AS turns, "
        "(SELECT count(*) FROM query_credit) AS tokens, (SELECT max(iteration) FROM rollouts) AS last"
    ).to_pylist()
    yield f"{sizes['rollouts']:,} rollouts, {sizes['turns']:,} turns, {sizes['tokens']:,} tokens with credit."
    yield ""
    yield "| page | first, ms | again, ms | kB |"
    yield "|---|---:|---:|---:|"
    last = sizes["last"]
    (one,) = storage.database.query(
        "SELECT group_id, rollout_id, question_key FROM rollouts WHERE iteration = $last ORDER BY ALL LIMIT 1",
        {"last": last},
    ).to_pylist()
    below = f"/runs/large/iterations/{last}"
    pages = {
        "runs": "/",
        "run": "/runs/large",
        "groups": below,
        "groups, largest credit": f"{below}?filter=mixed&sort=credit",
        "groups, retried searches": f"{below}?filter=retried",
        "groups, words": f"{below}?q=capital",
        "group": f"{below}/groups/{quote(one['group_id'], safe='')}",
        "tokens": f"{below}/rollouts/{quote(one['rollout_id'], safe='')}",
        "question": f"/runs/large/questions/{quote(one['question_key'], safe='')}",
        "compare": "/compare?run=large",
    }
    with TestClient(build_app(Workspace(workspace)), base_url="http://127.0.0.1") as client:
        for name, path in pages.items():
            first, size = timed(client, path)
            again = statistics.median(timed(client, path)[0] for _ in range(10))
            yield f"| {name} | {1000 * first:.0f} | {1000 * again:.0f} | {size / 1000:.0f} |"


def timed(client: TestClient, path: str) -> tuple[float, int]:
    """Return how long a page took and how large it is."""
    started = time.perf_counter()
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - started, len(answer.content)


if __name__ == "__main__":
    main()
