"""The command `sql`: which query, of which run, and how its rows are printed."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from rich.console import Console
from rich.table import Table

from flows.console.errors import UserError
from flows.console.terminal import ascii_json, make_table, print_line, printable, takes_any_text
from schemas.commands import parse_value
from schemas.records.run_kind import ReplayKind
from storage.database.canned import CannedQuery, list_canned, load_canned
from storage.database.connection import Database
from storage.database.query_results import Answer, Form, json_line, parameters_of
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

Format = Literal["table", "csv", "json"]
_FORMS: Mapping[Format, Form] = {"table": "values", "csv": "text", "json": "json"}
_MAX_ROWS = 200
_RUN = "run"
_QUOTE = '"'
_TO_QUOTE = re.compile(r'^$|[",\r\n]')


def print_canned(console: Console) -> None:
    """Print the shipped queries with their parameters."""
    rows = [(query.name, " ".join(query.parameters), query.description) for query in list_canned()]
    console.print(make_table(("name", "parameters", "what it shows"), rows))


def run_query(
    workspace: Workspace,
    query: str | None,
    name: str | None,
    parameters: Sequence[str],
    run: str | None,
    form: Format,
    notes: Console,
) -> Answer:
    """Return the rows of a query, or of a shipped one by `name`, in the form that `print_rows` takes.

    `parameters` are `key=value`. A query that holds $run is asked of `run`: the latest one when none is given, which
    is said on `notes`. Raises UserError, RunNotFoundError and QueryError for what cannot be asked.
    """
    texts = _texts(parameters)
    canned = None if name is None else load_canned(name)
    if canned is None:
        sql = query or ""
        values: dict[str, Any] = {key: parse_value(text, f"--param {key}={text}") for key, text in texts.items()}
        asks_for_run = _RUN in parameters_of(sql)
    else:
        # What a shipped query asks for are ids and names: texts, also where they look like numbers.
        sql, values, asks_for_run = canned.sql, dict(texts), _RUN in canned.parameters
        _check_parameters(canned, values)
    if run is not None and (not asks_for_run or _RUN in values):
        reason = "--param run names one already" if asks_for_run else "the query does not hold $run"
        raise UserError(f"--run {run}: {reason}; leave it out")
    if asks_for_run and _RUN not in values:
        values[_RUN] = _named(workspace, run) if run else _latest(workspace, canned, notes)
    return Database(workspace).read_only_user_query(sql, values, _FORMS[form])


def print_rows(answer: Answer, form: Format, console: Console) -> None:
    """Print a query's rows; csv and json give every row, the table the first 200."""
    match form:
        case "csv":
            _print_csv(answer)
        case "json":
            _print_json(answer)
        case "table":
            console.print(as_table(Answer(answer.names, answer.keys, answer.rows[:_MAX_ROWS])))
            if len(answer.rows) > _MAX_ROWS:
                print_line(console, f"{len(answer.rows) - _MAX_ROWS} more rows; --format csv gives all")
        case _:
            assert_never(form)


def as_table(answer: Answer, title: str = "") -> Table:
    """Return a rich table; few rows of many columns are turned on their side."""
    if len(answer.names) > 12 and 1 <= len(answer.rows) <= 3:
        sideways = [(name, *(row[index] for row in answer.rows)) for index, name in enumerate(answer.names)]
        numbers = (f"row {number}" for number in range(1, len(answer.rows) + 1))
        return make_table(("column", *numbers), sideways, title)
    return make_table(answer.names, answer.rows, title)


def _named(workspace: Workspace, run: str) -> str:
    return Ledger(ArtifactStore(workspace)).get_run(run).run


def _latest(workspace: Workspace, canned: CannedQuery | None, notes: Console) -> str:
    """Return the run that was worked on last: a replay where the query is about replays, else one that trains."""
    of_replays = canned is not None and canned.of_replays
    records = [
        record
        for record in Ledger(ArtifactStore(workspace)).list_runs()
        if (isinstance(record.kind, ReplayKind) if of_replays else record.trains)
    ]
    if not records:
        what = "replay" if of_replays else "run that trains"
        raise UserError(f"the query is about one run, and the workspace has no {what}; name a run with --run")
    latest = max(records, key=lambda record: record.updated_at).run
    print_line(notes, f"{'replay' if of_replays else 'run'} {latest}, the latest; another one with --run NAME")
    return latest


def _print_csv(answer: Answer) -> None:
    """Print lines as DuckDB's COPY writes them: NULL is nothing, an empty text is quoted; lists are JSON."""
    on_terminal = sys.stdout.isatty()
    for values in [answer.names, *answer.rows] if answer.names else []:
        # A file gets the data as it is; a terminal must not be steered by it.
        texts = (printable(value) if on_terminal and value is not None else value for value in values)
        print(",".join(map(_csv_cell, texts)))


def _csv_cell(text: str | None) -> str:
    if text is None:
        return ""
    return f"{_QUOTE}{text.replace(_QUOTE, _QUOTE * 2)}{_QUOTE}" if _TO_QUOTE.search(text) else text


def _print_json(answer: Answer) -> None:
    as_it_is = takes_any_text(sys.stdout)
    for row in answer.rows:
        line = json_line(answer.keys, row)
        print(line if as_it_is else ascii_json(line))


def _texts(parameters: Sequence[str]) -> dict[str, str]:
    """Return name and text of each --param; UserError for one without a name or value, or given twice."""
    texts: dict[str, str] = {}
    for parameter in parameters:
        key, equals, text = parameter.partition("=")
        if not key or not equals:
            raise UserError(f"--param {parameter}: expected name=value, such as rollout=ID for $rollout in the query")
        if key in texts:
            raise UserError(f"--param {key} is given twice ({texts[key]}, {text}); leave one out")
        texts[key] = text
    return texts


def _check_parameters(query: CannedQuery, values: Mapping[str, Any]) -> None:
    missing = [name for name in query.parameters if name not in values and name != _RUN]
    foreign = [name for name in values if name not in query.parameters]
    if missing:
        raise UserError(f"query '{query.name}' needs {missing[0]}; give it with --param {missing[0]}=VALUE")
    if foreign:
        known = ", ".join(query.parameters) or "none"
        raise UserError(f"query '{query.name}' has no parameter '{foreign[0]}' (it has: {known}); leave it out")
