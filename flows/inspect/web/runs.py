"""The pages of runs: the list, and one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from flows.console.interrupts import resume_command
from flows.console.terminal import format_seconds
from flows.inspect.browse import origin_of, settings_that_differ
from flows.inspect.web.charts import Chart, evaluation_charts, iteration_charts
from flows.inspect.web.dag import newest_graph
from flows.inspect.web.source import Row, Rows, Source
from flows.run.status import shown_status
from schemas.errors import UserError
from schemas.records.evaluation import told_conditions
from schemas.records.ledger import STAGES, RunRecord, StageKey
from storage.errors import DatabaseBusyError, StorageError
from storage.runs.studies import list_studies

_DEV = """
    SELECT run, max(em) FILTER (mode = 'greedy') AS greedy_em, max(em) FILTER (mode = 'sampled') AS sampled_em
    FROM (SELECT *, row_number() OVER (PARTITION BY run, mode ORDER BY updates_done DESC) AS age
        FROM evaluations WHERE NOT further)
    WHERE age = 1 GROUP BY run
"""
_EVALUATIONS = """
    SELECT e.updates_done, e.mode, e.em, e.f1, e.dataset, e.split, e.num_questions, e.search_quality,
        e.searches_per_rollout, e.valid_share, a.em_error, a.f1_error, j.judged_right,
        c.* EXCLUDE (run, iteration, mode, dataset, split),
        CASE WHEN e.further THEN e.dataset || ' ' || e.split
            WHEN count(*) FILTER (NOT e.further) OVER (PARTITION BY e.mode, e.updates_done) > 1 THEN e.dataset
            ELSE '' END AS label
    FROM evaluations AS e LEFT JOIN (
        SELECT run, iteration, mode, dataset, split,
            stddev_samp(em) / sqrt(count(*)) AS em_error, stddev_samp(f1) / sqrt(count(*)) AS f1_error
        FROM evaluation_answers WHERE run = $run GROUP BY ALL
    ) AS a USING (run, iteration, mode, dataset, split)
    LEFT JOIN evaluation_conditions AS c USING (run, iteration, mode, dataset, split)
    LEFT JOIN judged_evaluations AS j USING (run, iteration, mode, dataset, split)
    WHERE e.run = $run ORDER BY e.updates_done
"""
_STAGES = """
    SELECT iteration, stage, status, attempt, duration_s, error, started_at, adopted_from, num_rows
    FROM stages WHERE run = $run ORDER BY iteration DESC, started_at
"""
_SHOWN_ITERATIONS = 200


def runs_page(source: Source) -> dict[str, Any]:
    """Return a row a run, newest first; what the database cannot tell now is left out and said."""
    records = source.runs()
    problem, dev = None, dict[str, Row]()
    try:
        with source.rows() as rows:
            dev = {row["run"]: row for row in rows.all(_DEV)}
    except (UserError, StorageError) as error:
        problem = str(error)
    return {
        "runs": [_run_row(source, record, dev.get(record.run, {})) for record in records],
        "studies": list_studies(source.workspace),
        "problem": problem,
    }


def _run_row(source: Source, record: RunRecord, dev: Row) -> Row:
    status = shown_status(source.workspace, record)
    return {
        "record": record,
        "status": status,
        "origin": origin_of(record),
        "greedy_em": dev.get("greedy_em"),
        "sampled_em": dev.get("sampled_em"),
        "last_stage": _last_stage(source, record),
        "left": _time_left(record) if status == "running" else "",
        "resume": "" if status in ("running", "done") else resume_command(record.run, source.workspace.root),
    }


def _last_stage(source: Source, record: RunRecord) -> str:
    """Return the stage that was begun last, read from the files: the database hears of it when it has ended."""
    for iteration in (record.iterations_done + 1, record.iterations_done):
        for stage in reversed(STAGES):
            key = StageKey.model_validate({"run": record.run, "iteration": iteration, "stage": stage})
            if attempts := source.ledger.history(key).attempts:
                return f"{stage} {iteration}, {attempts[-1].status}"
    return ""


def _time_left(record: RunRecord) -> str:
    """Return how long the iterations to go take at the pace so far."""
    first = record.first_iteration - 1
    done, left = record.iterations_done - first, record.num_iterations - record.iterations_done
    if done < 1 or left < 1:
        return ""
    pace = (record.updated_at - record.created_at).total_seconds() / done
    since = (datetime.now(UTC) - record.updated_at).total_seconds()
    return format_seconds(max(pace * left - since, 0.0))


def run_page(source: Source, run: str) -> dict[str, Any]:
    """Return a run: its curves, the stages of its iterations, its settings, and what builds on it.

    Where the database cannot be read, `problem` says so, and the rest is what the files have. NotThereError for no
    such run.
    """
    record = source.run(run)
    evaluations, charts, stages = list[Row](), list[Chart](), list[Row]()
    problem = None
    try:
        with source.rows() as rows:
            evaluations, charts = rows.all(_EVALUATIONS, run=run), charts_of(source, rows, record)
            stages = rows.all(_STAGES, run=run)
    except (UserError, StorageError) as error:
        problem = error
    return {
        "problem": None if problem is None else str(problem),
        "tries_again": isinstance(problem, DatabaseBusyError),
        "row": _run_row(source, record, {}),
        "record": record,
        "charts": [chart.as_json() for chart in charts],
        "iterations": _by_iteration(stages),
        "graph": newest_graph(source, record),
        "stages": STAGES,
        "evaluations": evaluations,
        "conditions": told_conditions(evaluations),
        "has_judge": any(row["judged_right"] is not None for row in evaluations),
        "settings": settings_that_differ(record),
        "all_settings": json.dumps(json.loads(record.settings_json), indent=2),
        "related": [other for other in source.runs() if other.source == record.run],
        "is_live": shown_status(source.workspace, record) == "running",
    }


def charts_of(source: Source, rows: Rows, record: RunRecord) -> list[Chart]:
    """Return the curves of a run, those that have a value somewhere."""
    evaluations = rows.all(_EVALUATIONS, run=record.run)
    return [*evaluation_charts(evaluations), *iteration_charts(_iterations(source, rows, record))]


_STAMPS = """
    SELECT iteration, max(finished_at)::VARCHAR || ' ' || count(*) AS stamp
    FROM stages WHERE run = $run GROUP BY iteration
"""
_ITERATIONS = "SELECT * FROM v_iterations WHERE run = $run AND iteration IN (SELECT unnest($iterations))"


def _iterations(source: Source, rows: Rows, record: RunRecord) -> list[Row]:
    """Return the rows of v_iterations in order; those whose stages have not changed are remembered."""
    known = source.iterations.setdefault(record.run, {})
    stamps = {row["iteration"]: row["stamp"] for row in rows.all(_STAMPS, run=record.run)}
    changed = [iteration for iteration, stamp in stamps.items() if known.get(iteration, ("", {}))[0] != stamp]
    if changed:
        for row in rows.all(_ITERATIONS, run=record.run, iterations=changed):
            known[row["iteration"]] = (stamps[row["iteration"]], row)
    return [known[iteration][1] for iteration in sorted(stamps) if iteration in known]


def _by_iteration(stages: Sequence[Row]) -> list[Row]:
    """Return the newest iterations, each with its latest attempt at every stage."""
    found: dict[int, dict[str, Row]] = {}
    for stage in stages:
        latest = found.setdefault(stage["iteration"], {}).get(stage["stage"])
        if latest is None or stage["attempt"] > latest["attempt"]:
            found[stage["iteration"]][stage["stage"]] = stage
    return [{"iteration": number, "stages": found[number]} for number in sorted(found, reverse=True)][
        :_SHOWN_ITERATIONS
    ]
