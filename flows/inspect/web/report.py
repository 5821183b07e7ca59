"""`sdsearch report`: a run or a study as one HTML file that needs nothing else, to be mailed or attached to a paper."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from flows.console.terminal import print_line
from flows.inspect.web.compare import flipped
from flows.inspect.web.rendering import templates
from flows.inspect.web.runs import run_page
from flows.inspect.web.siblings import group_page
from flows.inspect.web.source import Row, Source
from flows.settings.show import toml_lines
from flows.study.plan import load_study
from flows.study.plot import draw_curves
from flows.study.reporting import report as study_results
from flows.study.rewards import draw_rewards
from flows.study.show import NOTES, columns_of, evaluated_modes, rows_of_mode
from flows.study.show_figures import NOTES as FIGURE_NOTES
from flows.study.show_figures import figure_tables, questions_of
from schemas.commands import command, quoted
from schemas.errors import UserError
from schemas.records.evaluation import told_conditions
from schemas.records.ledger import RunRecord
from schemas.records.study import StudyResults
from storage.disk.files import write_bytes_atomic
from storage.workspace import open_existing

STYLES: Final = ("uPlot.min.css", "pages.css")
SCRIPTS: Final = ("uPlot.iife.min.js", "pages.js")
_SHOWN_FLIPS: Final = 12
_LARGEST_CREDIT = """
    SELECT q.iteration, q.group_id FROM v_queries AS q JOIN v_groups AS g USING (run, iteration, group_id)
    WHERE q.run = $run AND g.num_correct > 0 AND g.num_incorrect > 0 AND q.weighted_log_ratio IS NOT NULL
    GROUP BY ALL ORDER BY max(abs(q.weighted_log_ratio)) DESC, q.group_id LIMIT 2
"""
_WORST = """
    SELECT iteration, group_id FROM rollouts WHERE run = $run
    GROUP BY ALL HAVING max(em) = 0 ORDER BY iteration DESC, sum(len(queries)) DESC, group_id LIMIT 1
"""
_LEARNT = """
    SELECT max_by(iteration, iteration) AS iteration, max_by(group_id, iteration) AS group_id FROM (
        SELECT question_key, iteration, group_id, avg(em) AS em FROM rollouts WHERE run = $run GROUP BY ALL
    ) GROUP BY question_key HAVING count(*) > 1 AND min_by(em, iteration) = 0 AND max_by(em, iteration) = 1
    ORDER BY question_key LIMIT 1
"""


def report(run: str | None, study: str | None, out: Path | None, folder: Path, console: Console) -> None:
    """Write the report of a run or of a study; UserError unless exactly one of them is named, and for no such one."""
    if (run is None) == (study is None):
        raise UserError("report takes the name of a run, or --study NAME; see: sdsearch runs")
    workspace = open_existing(folder)
    source = Source(workspace)
    if run is not None:
        name, page = run, templates().get_template("report_run.html").render(_run(source, run))
    else:
        assert study is not None
        results = study_results(load_study(study, workspace), workspace)
        name, page = results.study.name, templates().get_template("report_study.html").render(_study(source, results))
    file = out or Path(f"{name}.html")
    content = page.encode()
    write_bytes_atomic(file, content, file.parent)
    print_line(console, f"{file}: {len(content) / 1000:,.0f} kB, opens in any browser and needs nothing else")


def _run(source: Source, run: str) -> dict[str, Any]:
    page = run_page(source, run)
    record: RunRecord = page["record"]
    evaluations: list[Row] = page["evaluations"]
    last = max((row["updates_done"] for row in evaluations), default=0)
    newest = [row for row in evaluations if row["updates_done"] == last]
    with source.rows() as rows:
        chosen = [("Largest credit", row) for row in rows.all(_LARGEST_CREDIT, run=run)]
        chosen += [("From all INCORRECT to all CORRECT", row) for row in rows.all(_LEARNT, run=run)]
        chosen += [("All INCORRECT, most searches", row) for row in rows.all(_WORST, run=run)]
        flips = flipped(rows, [run], [run])[:_SHOWN_FLIPS]
    groups = [{"why": why, **group_page(source, run, row["iteration"], row["group_id"])} for why, row in chosen]
    settings = json.loads(record.settings_json)
    return {
        **page,
        **_frame(
            source, f"Run {run}", [f"the run was made by sdsearch {record.code_version}", *_hosts(source, record)]
        ),
        "newest": newest,
        "conditions": told_conditions(newest),
        "groups": groups,
        "flipped": flips,
        "settings_toml": "\n".join(toml_lines(settings)),
        "reproduce": ["# settings.toml is below", command("train", "settings.toml", "--run", f"{run}-again")],
    }


def _hosts(source: Source, record: RunRecord) -> list[str]:
    with source.rows() as rows:
        found = rows.all(
            "SELECT host, min(started_at) AS first, max(finished_at) AS last FROM stages "
            "WHERE run = $run GROUP BY host",
            run=record.run,
        )
    return [
        f"its stages ran on {row['host']} from {row['first']:%Y-%m-%d %H:%M} to {row['last']:%Y-%m-%d %H:%M} UTC"
        for row in found
    ]


def _study(source: Source, results: StudyResults) -> dict[str, Any]:
    study, rewards = results.study, draw_rewards(results)
    return {
        **_frame(source, f"Study {study.name}", []),
        "study": study,
        "outcomes": results.outcomes,
        "num_finished": sum(outcome.finished for outcome in results.outcomes),
        "tables": [
            {"mode": mode, "columns": columns_of(results), "rows": rows_of_mode(results, mode)}
            for mode in evaluated_modes(results)
        ],
        "notes": NOTES.replace("*", ""),
        "figures": [
            {"title": f"Figures on {questions_of(figures)}", "tables": list(figure_tables(figures, results))}
            for figures in reversed(results.figures)
        ],
        "figure_notes": FIGURE_NOTES.replace("*", ""),
        "curves": base64.b64encode(draw_curves(results, "svg")).decode(),
        "rewards": base64.b64encode(rewards).decode() if rewards else None,
        "variants": [
            (study.title_of(name), _changes(study.set + variant.set)) for name, variant in study.variants.items()
        ],
        "settings_toml": "",
        "reproduce": [command("study", study.name)],
    }


def _changes(overrides: Sequence[str]) -> str:
    return " ".join(f"--set {quoted(override)}" for override in overrides) or "none"


def _frame(source: Source, title: str, made: Sequence[str]) -> dict[str, Any]:
    """Return what every report has: its title, its styles and scripts, and what made it."""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "duckdb", "prefect"))
    return {
        "title": title,
        "styles": STYLES,
        "scripts": SCRIPTS,
        "made": [
            *made,
            f"this report was made on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by sdsearch {version('sdsearch')} from "
            f"{source.workspace.root}, with {libraries}, Python {platform.python_version()}",
        ],
    }
