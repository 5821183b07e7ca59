"""Keep a finished study's results with the documentation: its files and a page made of them.

    sdsearch study study_mini --workers 2
    sdsearch study study_mini --report-test --workers 2
    python benchmarks/store_study.py study_mini

It writes into docs/results: a folder (the study, every figure of every run as CSV, the learning curves as SVG) and a
page. Nothing of it is written by hand: another workspace with the same runs gives the same tables.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from flows.console.errors import UserError
from flows.study.plan import load_study
from flows.study.reporting import report
from flows.study.show_figures import figures_csv, figures_markdown
from schemas.records.study import Study, StudyResults
from schemas.records.study_figures import StudyFigures
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace, open_existing

TARGET = Path(__file__).parents[1] / "docs" / "results"
KEPT = ("study.json", "curves.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of a study of the workspace")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    parser.add_argument("--target", type=Path, default=TARGET, help="folder of the pages (default: docs/results)")
    options = parser.parse_args()
    try:
        page = store(options.study, options.workspace, options.target)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(page)


def store(name: str, workspace_folder: Path, target: Path) -> Path:
    """Write the files and the page of a study whose runs are all finished, and return the page; UserError otherwise."""
    workspace = open_existing(workspace_folder)
    study = load_study(name, workspace)
    results = report(study, workspace)
    unfinished = [outcome.run for outcome in results.outcomes if not outcome.finished]
    if unfinished:
        raise UserError(f"study {study.name}: {len(unfinished)} runs are not finished ({unfinished[0]}, …)")
    folder = target / study.name
    folder.mkdir(parents=True, exist_ok=True)
    for file in KEPT:
        shutil.copyfile(workspace.study_folder(study.name) / file, folder / file)
    for figures in results.figures:
        (folder / f"figures_{figures.split}.csv").write_text(figures_csv(figures), encoding="utf-8")
    page = target / f"{study.name}.md"
    page.write_text(page_text(study, results, _made(results, workspace)), encoding="utf-8")
    return page


def page_text(study: Study, results: StudyResults, made: str) -> str:
    """Return the page: how it was made, the learning curves, the figures on test where they were read, those on dev."""
    parts = [
        f"# Study {study.name}",
        f"{len(study.variants)} variants, seeds {', '.join(map(str, study.seeds))}; {made}.",
        f"`{study.base}` with `{json.dumps(list(study.set))}`, and for each variant:",
        "\n".join(f"- {study.title_of(name)}: `{json.dumps(list(one.set))}`" for name, one in study.variants.items()),
        f"![Learning curves of {study.name} on the questions for choosing]({study.name}/curves.svg)",
        *(_figures_text(figures, results) for figures in reversed(results.figures)),
    ]
    return "\n\n".join(parts) + "\n"


def _made(results: StudyResults, workspace: Workspace) -> str:
    """Return when the runs were trained, and with which version of the program."""
    ledger = Ledger(ArtifactStore(workspace))
    records = [ledger.get_run(outcome.run) for outcome in results.outcomes]
    versions = ", ".join(sorted({record.code_version for record in records}))
    first, last = min(r.created_at for r in records), max(r.updated_at for r in records)
    return f"trained with version {versions} from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"


def _figures_text(figures: StudyFigures, results: StudyResults) -> str:
    """Return a split's tables, one heading lower than in the study's own folder."""
    lines = figures_markdown(figures, results).rstrip().splitlines()
    lines[0] = f"# Figures on {figures.num_questions} {figures.split} questions"
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)


if __name__ == "__main__":
    main()
