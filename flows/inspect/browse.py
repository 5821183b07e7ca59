"""What the commands `runs` and `show` print: read from files and database, without any model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, assert_never

from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import format_seconds, make_table, print_line
from flows.inspect.sql import as_table
from flows.replay.show import print_comparison
from flows.run.status import shown_status
from flows.settings.load import stored_settings
from schemas.records.ledger import RunRecord
from schemas.records.run_kind import EvaluationKind, ForkKind, ReplayKind, TrainingKind
from schemas.settings.root import Settings
from schemas.settings.rules import notes
from storage.database.connection import Database
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

_STAGE_SECONDS = """
    SELECT stage, count(*) FILTER (status = 'done') AS done, count(*) FILTER (status = 'failed') AS failed,
        count(*) FILTER (status = 'interrupted') AS interrupted,
        round(coalesce(sum(duration_s) FILTER (status = 'done'), 0), 2) AS seconds,
        round(avg(duration_s) FILTER (status = 'done'), 3) AS seconds_each
    FROM stages WHERE run = $run GROUP BY stage ORDER BY min(started_at)
"""
_CURVE = """
    SELECT updates_done, alpha, num_questions AS questions, greedy_em, sampled_em, greedy_f1, sampled_f1,
        greedy_search_quality AS search_quality, greedy_searches_per_rollout AS searches
    FROM v_learning_curve WHERE run = $run AND NOT further ORDER BY dataset, split, updates_done
"""
_FURTHER = """
    SELECT dataset, split, updates_done, mode, num_questions AS questions, em, f1, cover_em, search_quality,
        searches_per_rollout AS searches
    FROM evaluations WHERE run = $run AND further ORDER BY dataset, split, mode, updates_done
"""
_REWARD = """
    SELECT part, round(min_by(value_mean, iteration), 4) AS first_iteration,
        round(max_by(value_mean, iteration), 4) AS last_iteration,
        round(avg(value_mean), 4) AS all_iterations, round(min(value_min), 4) AS lowest,
        round(max(value_max), 4) AS highest
    FROM v_reward_parts WHERE run = $run GROUP BY part ORDER BY part
"""
_SETS = """
    SELECT dataset, split, mode, num_questions AS questions, em, f1, cover_em, search_quality,
        searches_per_rollout AS searches, valid_share AS valid, left(fingerprint, 12) AS conditions
    FROM evaluations LEFT JOIN evaluation_conditions USING (run, iteration, mode, dataset, split)
    WHERE run = $run ORDER BY dataset, split
"""


def print_runs(workspace: Workspace, console: Console) -> None:
    """Print one row a run, oldest first."""
    columns = ("run", "kind", "of", "status", "iterations", "policy version", "seed", "model", "started (UTC)")
    rows = [
        (
            record.run,
            record.kind.kind,
            record.source,
            shown_status(workspace, record),
            f"{record.iterations_done}/{record.num_iterations}",
            record.policy_version,
            record.seed,
            json.loads(record.settings_json)["model"]["path"],
            f"{record.created_at:%Y-%m-%d %H:%M:%S}",
        )
        for record in _ledger(workspace).list_runs()
    ]
    console.print(make_table(columns, rows))


def print_run(workspace: Workspace, run: str, console: Console) -> None:
    """Print a run's status, the settings that differ from the defaults, its stages and what it measured."""
    record = _ledger(workspace).get_run(run)
    print_line(console, _standing(record, shown_status(workspace, record)))
    for warning in record.warnings:
        print_line(console, f"warning after {warning.iteration} updates: {warning.text}")
    for note in _notes(record):
        print_line(console, f"note: {note}")
    console.print(
        make_table(("setting", "value"), settings_that_differ(record), "settings that differ from the defaults")
    )
    database = Database(workspace)
    console.print(as_table(database.answer(_STAGE_SECONDS, {"run": run}), "stages"))
    match record.kind:
        case EvaluationKind():
            console.print(as_table(database.answer(_SETS, {"run": run}), "data sets"))
        case ReplayKind():
            print_comparison(run, database, console)
        case TrainingKind() | ForkKind():
            console.print(as_table(database.answer(_CURVE, {"run": run}), "learning curve"))
            if (further := database.answer(_FURTHER, {"run": run})).records():
                console.print(as_table(further, "further sets"))
            parts = database.answer(_REWARD, {"run": run})
            # One metric alone is the reward.
            if [row["part"] for row in parts.records()] not in ([], ["f1"], ["em"], ["cover_em"]):
                console.print(as_table(parts, "reward: mean of each part"))
        case unknown:
            assert_never(unknown)


def _ledger(workspace: Workspace) -> Ledger:
    return Ledger(ArtifactStore(workspace))


def _standing(record: RunRecord, status: str) -> str:
    seconds = (record.updated_at - record.created_at).total_seconds()
    policy = f"policy {record.policy_sha256[:16] or '-'}" if record.trains else ""
    return (
        f"run {record.run}: {status}, {record.iterations_done} of {record.num_iterations} iterations, seed "
        f"{record.seed}, {format_seconds(max(seconds, 0.0))} from start to last change, "
        f"{', '.join(filter(None, (policy, origin_of(record))))}"
    )


def origin_of(record: RunRecord) -> str:
    """Return what a run is that builds on another, '' where it does not."""
    return "" if isinstance(record.kind, TrainingKind) else record.kind.title


def _notes(record: RunRecord) -> list[str]:
    """Return what was said when the run began; nothing where it trains nothing, or its settings are unknown here."""
    if not record.trains:
        return []
    try:
        return notes(stored_settings(record))
    except UserError:
        return []


def settings_that_differ(record: RunRecord) -> list[tuple[str, str]]:
    """Return the path of the model and each setting of a run that is not the default, with its value as JSON."""
    stored = json.loads(record.settings_json)
    defaults = Settings.model_validate({"model": {"path": stored["model"]["path"]}}).model_dump(mode="json")
    known = dict(_flat(defaults))
    return [("model.path", stored["model"]["path"])] + [
        (name, json.dumps(value)) for name, value in _flat(stored) if known.get(name) != value
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in tree.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs
