"""What the commands `runs`, `show` and `sql` print: read from the database, without any model."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from rich.console import Console

from flows.errors import UserError
from flows.replay_table import print_comparison
from flows.terminal import format_seconds, make_table, print_line, printable
from schemas.commands import command, parse_value
from schemas.config import Settings
from schemas.ledger import RunRecord
from storage.artifacts import ArtifactStore
from storage.canned import CannedQuery, list_canned, load_canned
from storage.database import Database
from storage.ledger import Ledger
from storage.workspace import Workspace

Format = Literal["table", "csv", "json"]
_MAX_ROWS = 200
_STAGE_SECONDS = """
    SELECT stage, count(*) FILTER (status = 'done') AS done, count(*) FILTER (status = 'failed') AS failed,
        count(*) FILTER (status = 'interrupted') AS interrupted,
        round(coalesce(sum(duration_s) FILTER (status = 'done'), 0), 2) AS seconds,
        round(avg(duration_s) FILTER (status = 'done'), 3) AS seconds_each
    FROM stages WHERE run = $run GROUP BY stage ORDER BY min(started_at)
"""
_CURVE = """
    SELECT updates_done, num_questions AS questions, greedy_em, sampled_em, greedy_f1, sampled_f1,
        greedy_search_quality AS search_quality, greedy_searches_per_rollout AS searches
    FROM v_learning_curve WHERE run = $run ORDER BY dataset, split, updates_done
"""
_SETS = """
    SELECT dataset, split, mode, num_questions AS questions, em, f1, search_quality,
        searches_per_rollout AS searches, valid_share AS valid
    FROM evaluations WHERE run = $run ORDER BY dataset, split
"""


def open_existing(folder: Path, *, needs_database: bool = True) -> Workspace:
    """Return a workspace that holds runs or questions; UserError when there is none. Nothing is written."""
    workspace = Workspace(folder.expanduser().resolve())
    if workspace.database.is_file():
        return workspace
    if not workspace.run_files() and not workspace.questions.is_dir():
        raise UserError(
            f"no database in the workspace {workspace.root}; name another with --workspace or SDSEARCH_HOME, or make "
            f"one with: {command('train', 'quickstart', workspace=workspace.root)}"
        )
    if needs_database:
        raise UserError(
            f"{workspace.database} is missing; make it again from the files with: "
            f"{command('db', 'rebuild', workspace=workspace.root)}"
        )
    return workspace


def print_runs(workspace: Workspace, console: Console) -> None:
    """Print one row a run, oldest first."""
    origin = "replay, fork or evaluation of"
    columns = ("run", "status", "iterations", "policy version", "seed", "model", origin, "started (UTC)")
    rows = [
        (
            record.run,
            record.status,
            f"{record.iterations_done}/{record.num_iterations}",
            record.policy_version,
            record.seed,
            json.loads(record.settings_json)["model"]["path"],
            record.replay_of or record.fork_of or record.evaluation_of,
            f"{record.created_at:%Y-%m-%d %H:%M:%S}",
        )
        for record in _ledger(workspace).list_runs()
    ]
    console.print(make_table(columns, rows))


def print_run(workspace: Workspace, run: str, console: Console) -> None:
    """Print a run's standing, the settings that differ from the defaults, its stages and what it measured."""
    record = _ledger(workspace).get_run(run)
    print_line(console, _standing(record))
    console.print(make_table(("setting", "value"), _changed_settings(record), "settings that differ from the defaults"))
    database = Database(workspace)
    console.print(_as_table(database.query(_STAGE_SECONDS, {"run": run}), "stages"))
    if record.evaluation_of is not None:
        console.print(_as_table(database.query(_SETS, {"run": run}), "data sets"))
    elif record.replay_of is None:
        console.print(_as_table(database.query(_CURVE, {"run": run}), "learning curve"))
    else:
        print_comparison(run, database, console)


def print_canned(console: Console) -> None:
    """Print the shipped queries with their parameters."""
    rows = [(query.name, " ".join(query.parameters), query.description) for query in list_canned()]
    console.print(make_table(("name", "parameters", "what it shows"), rows))


def run_query(workspace: Workspace, query: str | None, name: str | None, parameters: Sequence[str]) -> pa.Table:
    """Return the rows of a query, or of a shipped one by `name`; `parameters` are `key=value`."""
    values = dict(_parameter(text) for text in parameters)
    if name is None:
        return Database(workspace).read_only_user_query(query or "", values)
    canned = load_canned(name)
    _check_parameters(canned, values)
    # What a shipped query asks for are ids and names: texts, also where they look like numbers.
    return Database(workspace).read_only_user_query(canned.sql, {key: str(value) for key, value in values.items()})


def print_rows(rows: pa.Table, form: Format, console: Console) -> None:
    """Print a query's rows; csv and json give every row, the table the first 200."""
    if form == "csv":
        _print_csv(rows)
    elif form == "json":
        _print_json(rows)
    else:
        console.print(_as_table(rows.slice(0, _MAX_ROWS)))
        if rows.num_rows > _MAX_ROWS:
            print_line(console, f"{rows.num_rows - _MAX_ROWS} more rows; --format csv gives all")


def _ledger(workspace: Workspace) -> Ledger:
    return Ledger(ArtifactStore(workspace))


def _standing(record: RunRecord) -> str:
    seconds = (record.updated_at - record.created_at).total_seconds()
    policy = "" if record.replay_of or record.evaluation_of else f"policy {record.policy_sha256[:16] or '-'}"
    return (
        f"run {record.run}: {record.status}, {record.iterations_done} of {record.num_iterations} iterations, seed "
        f"{record.seed}, {format_seconds(max(seconds, 0.0))} from start to last change, "
        f"{', '.join(filter(None, (policy, _origin(record))))}"
    )


def _origin(record: RunRecord) -> str:
    """Return which run another one builds on, '' when there is none."""
    last = record.first_iteration + record.num_iterations - 1
    if record.replay_of is not None:
        return f"replay of iterations {record.first_iteration}:{last} of run {record.replay_of}"
    if record.evaluation_of is not None:
        return f"evaluation of {record.evaluation_of}, version {record.policy_version}"
    return "" if record.fork_of is None else f"fork of run {record.fork_of} after {record.first_iteration - 1} updates"


def _changed_settings(record: RunRecord) -> list[tuple[str, str]]:
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


def _as_table(rows: pa.Table, title: str = "") -> Any:
    """Return a rich table; few rows of many columns are turned on their side."""
    names = rows.column_names
    values = [[row[name] for name in names] for row in rows.to_pylist()]
    if len(names) > 12 and 1 <= len(values) <= 3:
        sideways = [(name, *(row[place] for row in values)) for place, name in enumerate(names)]
        return make_table(("column", *(f"row {number}" for number in range(1, len(values) + 1))), sideways, title)
    return make_table(names, values, title)


def _print_csv(rows: pa.Table) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for values in [rows.column_names, *(row.values() for row in rows.to_pylist())]:
        cells = [json.dumps(v, ensure_ascii=False, default=str) if isinstance(v, list | dict) else v for v in values]
        # A file gets the data as it is; a terminal must not be steered by it.
        writer.writerow([printable(c) if isinstance(c, str) else c for c in cells] if sys.stdout.isatty() else cells)


def _print_json(rows: pa.Table) -> None:
    for row in rows.to_pylist():
        print(json.dumps(row, ensure_ascii=sys.stdout.isatty(), default=str))


def _parameter(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"--param {text}: expected name=value, such as rollout=ID for $rollout in the query")
    return key, parse_value(value, f"--param {text}")


def _check_parameters(query: CannedQuery, values: Mapping[str, Any]) -> None:
    missing = [name for name in query.parameters if name not in values]
    foreign = [name for name in values if name not in query.parameters]
    if missing:
        raise UserError(f"query '{query.name}' needs {missing[0]}; give it with --param {missing[0]}=VALUE")
    if foreign:
        known = ", ".join(query.parameters) or "none"
        raise UserError(f"query '{query.name}' has no parameter '{foreign[0]}' (it has: {known}); leave it out")
