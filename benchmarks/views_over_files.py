"""Views straight over the stages' parquet files, against the rows that are inserted into the database.

`python benchmarks/views_over_files.py WORKSPACE RUN [--iterations 200 2000]`: the iterations of a finished run are
repeated (as hard links, under new names of runs) until a table has as many files, in a temporary folder. The same
questions are then asked of the database that `sdsearch db rebuild` makes and of views over the files, in a fresh
process each; the answers must be equal. What stays to be done by rows is the same on both sides: the run's record.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb
from results import machine, put_results

from storage.database.rebuild import rebuild_database
from storage.storage import Storage
from storage.workspace import Workspace

_RUN_LENGTH: Final = 50
_VIEWS: Final = """
CREATE VIEW scores AS SELECT * FROM {scores};
CREATE VIEW groups AS SELECT * FROM {groups};
CREATE VIEW credit AS SELECT * FROM {credit};
CREATE VIEW blocks AS SELECT * FROM {blocks};
CREATE VIEW updates AS SELECT * FROM {updates};
CREATE VIEW reports AS SELECT * FROM {reports};
CREATE VIEW stages AS
    SELECT unnest(attempts, max_depth := 2) FROM read_json('{root}/artifacts/run=*/iteration=*/stage=*/stage.json');
CREATE VIEW rollouts AS
    SELECT run, iteration, id AS group_id, question.question AS question, unnest(rollouts, max_depth := 2) FROM groups;
CREATE VIEW turns AS
    SELECT run, iteration, group_id, question, id AS rollout_id, index AS rollout_index,
        generate_subscripts(turns, 1) - 1 AS turn, unnest(turns, max_depth := 2) FROM rollouts;
"""
_FILES: Final = {
    "scores": ("score", "scores"),
    "groups": ("sample", "groups"),
    "credit": ("teacher", "credit"),
    "blocks": ("hindsight", "blocks"),
    "updates": ("update", "update"),
    "reports": ("evaluate", "reports"),
}
# What is asked: of the tables, of the views over the files.
_QUESTIONS: Final[dict[str, tuple[str, str]]] = {
    "flat: mean reward of each iteration": (
        "SELECT run, iteration, avg(reward) FROM rollouts GROUP BY ALL ORDER BY ALL",
        "SELECT run, iteration, avg(reward) FROM scores GROUP BY ALL ORDER BY ALL",
    ),
    "flat: mean JSD of all tokens of one run": (
        "SELECT count(*), avg(jsd) FROM query_credit WHERE run = 'copy00'",
        "SELECT count(*), avg(jsd) FROM credit WHERE run = 'copy00'",
    ),
    "nested: searches and passages found (turns, hits)": (
        "SELECT count(*), sum(len(passage_ids)) FROM searches",
        "SELECT count(*), sum(len(observation.hits)) FROM turns "
        "WHERE action.kind = 'search' AND observation IS NOT NULL",
    ),
    "latest_metrics: rewards, losses, seconds of an iteration": (
        "SELECT i.reward_mean, i.loss, i.num_blocks FROM v_iterations AS i WHERE run = 'copy00' "
        "ORDER BY iteration DESC LIMIT 1",
        "SELECT (SELECT avg(reward) FROM scores AS s WHERE s.run = u.run AND s.iteration = u.iteration), "
        "(SELECT avg(step.loss) FROM (SELECT unnest(u.steps) AS step)), "
        "(SELECT count(*) FROM blocks AS b WHERE b.run = u.run AND b.iteration = u.iteration) "
        "FROM updates AS u WHERE u.run = 'copy00' ORDER BY iteration DESC LIMIT 1",
    ),
    "learning_curve": (
        "SELECT iteration, dataset, split, max(em) FILTER (mode = 'greedy') FROM evaluations "
        "WHERE run = 'copy00' GROUP BY ALL ORDER BY ALL",
        "SELECT iteration, dataset, split, max(em) FILTER (mode = 'greedy') FROM reports "
        "WHERE run = 'copy00' GROUP BY ALL ORDER BY ALL",
    ),
    "stage_seconds": (
        "SELECT iteration, count(*), round(sum(duration_s), 3) FROM stages WHERE run = 'copy00' AND status = 'done' "
        "GROUP BY ALL ORDER BY ALL",
        "SELECT iteration, count(*), round(sum(duration_s), 3) FROM stages WHERE run = 'copy00' AND status = 'done' "
        "GROUP BY ALL ORDER BY ALL",
    ),
    "rollout_text": (
        "SELECT turn, text, observation_text FROM turns WHERE run = 'copy00' AND rollout_id = '{rollout}' ORDER BY ALL",
        "SELECT turn, generation.text, observation.text FROM turns WHERE run = 'copy00' AND rollout_id = '{rollout}' "
        "ORDER BY ALL",
    ),
    "best_queries: log-ratio of each search, the 20 highest": (
        "SELECT round(avg(teacher_logprob - student_logprob), 6) AS ratio, any_value(rollout_id) AS rollout_id "
        "FROM query_credit JOIN turns USING (run, iteration, rollout_id, turn) WHERE run = 'copy00' "
        "AND list_contains(query_positions, position - token_start) "
        "GROUP BY iteration, rollout_id, turn ORDER BY ratio DESC, rollout_id LIMIT 20",
        "WITH starts AS (SELECT run, iteration, rollout_id, turn, generation.query_positions AS query_positions, "
        "coalesce(sum(len(generation.token_ids) + coalesce(len(observation.token_ids), 0)) OVER ("
        "PARTITION BY run, iteration, rollout_id ORDER BY turn ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) "
        "AS token_start FROM turns WHERE run = 'copy00') "
        "SELECT round(avg(teacher_logprob - student_logprob), 6) AS ratio, any_value(rollout_id) AS rollout_id "
        "FROM credit JOIN starts USING (run, iteration, rollout_id, turn) "
        "WHERE list_contains(query_positions, position - token_start) "
        "GROUP BY iteration, rollout_id, turn ORDER BY ratio DESC, rollout_id LIMIT 20",
    ),
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("workspace", type=Path)
    parser.add_argument("run")
    parser.add_argument("--iterations", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args(arguments)
    lines = [f"`python benchmarks/views_over_files.py` ({machine()}, duckdb {duckdb.__version__})", ""]
    for number in options.iterations:
        with tempfile.TemporaryDirectory(dir=options.workspace) as folder:
            lines += [*measure(options.workspace, options.run, number, options.repeats, Path(folder)), ""]
    print("\n".join(lines))
    if options.results:
        put_results(options.results, "views-over-files", lines)


def measure(workspace: Path, run: str, num_iterations: int, repeats: int, folder: Path) -> list[str]:
    """Return the table of one size: milliseconds of the first and of a later asking, rows against files."""
    rollout = repeat_run(workspace, run, num_iterations, folder)
    storage = Storage(Workspace.open(folder))
    started = time.perf_counter()
    rebuilt = rebuild_database(storage.workspace, storage.ledger, storage.question_sets.index_all, storage.rows_of)
    rebuild_s = time.perf_counter() - started
    assert not rebuilt.left_out, rebuilt.left_out[0]
    asked = {side: ask_apart(folder, side, rollout, repeats) for side in ("rows", "files")}
    size = storage.workspace.database.stat().st_size / 1e6
    lines = [
        f"{num_iterations} files a table; all rows inserted in {rebuild_s:.1f} s "
        f"({1000 * rebuild_s / num_iterations:.1f} ms an iteration), the database has {size:.0f} MB.",
        "",
        "| ms | rows, first | rows, warm | views, first | views, warm | warm, views / rows |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("opening", *_QUESTIONS):
        (rows_first, rows_warm, rows), (files_first, files_warm, files) = (asked[side][name] for side in asked)
        assert rows == files, f"{name}: {rows[:300]} != {files[:300]}"
        lines.append(
            f"| {name} | {rows_first:.0f} | {rows_warm:.1f} | {files_first:.0f} | {files_warm:.1f} "
            f"| {files_warm / rows_warm:.1f} |"
        )
    return lines


def repeat_run(workspace: Path, run: str, num_iterations: int, folder: Path) -> str:
    """Fill a workspace with runs of `_RUN_LENGTH` iterations made of one run's; return a rollout's id."""
    source = workspace / "artifacts" / f"run={run}"
    record = json.loads((source / "run.json").read_text())
    iterations = sorted(source.glob("iteration=*"))[1:]  # The first holds an evaluation alone.
    for index in range(num_iterations):
        name, number = f"copy{index // _RUN_LENGTH:02d}", index % _RUN_LENGTH + 1
        target = folder / "artifacts" / f"run={name}" / f"iteration={number:05d}"
        for stage in iterations[index % len(iterations)].glob("stage=*"):
            _repeat_stage(stage, target / stage.name, name, number)
        run_file = target.parent / "run.json"
        if not run_file.exists():
            run_file.write_text(json.dumps({**record, "run": name}))
    with duckdb.connect() as connection:
        groups = iterations[0] / "stage=sample" / "groups.parquet"
        (found,) = connection.execute(f"SELECT rollouts[1].id FROM '{groups}' ORDER BY id LIMIT 1").fetchone() or ("",)
    return str(found)


def _repeat_stage(source: Path, target: Path, run: str, number: int) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "stage.json":
            os.link(path, target / path.name)
    history = json.loads((source / "stage.json").read_text())
    (attempt,) = (attempt for attempt in history["attempts"] if attempt["status"] == "done")
    outputs = [
        {**output, "path": f"artifacts/run={run}/{target.parent.name}/{target.name}/{Path(output['path']).name}"}
        for output in attempt["outputs"]
    ]
    attempt |= {"run": run, "iteration": number, "attempt": 1, "outputs": outputs}
    (target / "stage.json").write_text(json.dumps({"attempts": [attempt]}))


def ask_apart(folder: Path, side: str, rollout: str, repeats: int) -> dict[str, tuple[float, float, str]]:
    """Return milliseconds of the first asking, the median of later ones, and the answer; each first one in a process
    of its own, with the system's cache of files warm."""
    firsts: dict[str, float] = {}
    warms: dict[str, list[float]] = defaultdict(list)
    answers: dict[str, str] = {}
    for name in _QUESTIONS:
        command = [sys.executable, __file__, "--ask", str(folder), side, rollout, name, str(repeats)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        firsts[name], answers[name] = told["first"], told["answer"]
        warms[name] = told["warm"]
        firsts.setdefault("opening", told["opening"])
        warms["opening"].append(told["opening"])
    answers["opening"] = ""
    return {name: (firsts[name], statistics.median(warms[name]), answers[name]) for name in answers}


def ask(folder: Path, side: str, rollout: str, name: str, repeats: int) -> None:
    """Print what one question takes in this process."""
    started = time.perf_counter()
    if side == "rows":
        connection = duckdb.connect(folder / "sdsearch.duckdb", read_only=True)
    else:
        connection = duckdb.connect()
        sources = {
            view: f"read_parquet('{folder}/artifacts/run=*/iteration=*/stage={stage}/{file}.parquet', "
            "hive_partitioning := true, hive_types := {run: VARCHAR, iteration: INTEGER, stage: VARCHAR})"
            for view, (stage, file) in _FILES.items()
        }
        connection.execute(_VIEWS.format(root=folder, **sources))
    opened = time.perf_counter()
    sql = _QUESTIONS[name][side == "files"].replace("{rollout}", rollout)
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        answer = connection.execute(sql).fetchall()
        times.append(1000 * (time.perf_counter() - began))
    told = {
        "opening": 1000 * (opened - started),
        "first": times[0],
        "warm": times[1:],
        "answer": repr(_rounded(answer)),
    }
    print(json.dumps(told))


def _rounded(rows: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Sums over other orders differ in the last digits."""
    return [tuple(round(value, 5) if isinstance(value, float) else value for value in row) for row in rows]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ask"]:
        ask(Path(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6]))
    else:
        main(sys.argv[1:])
