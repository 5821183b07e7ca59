"""What a study's folder holds, made from what its runs have measured: tables, figures, curves.

The questions for choosing are those that the runs are evaluated on while they train; those for reporting are read by
`flows.study.held_out` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from flows.console.errors import UserError
from flows.settings.load import describe_differences
from flows.study.answers import Evidence, Place, read_answers
from flows.study.figures import compute_figures
from flows.study.held_out import held_out_places
from flows.study.plan import PlannedRun, plan_runs
from flows.study.plot import draw_curves
from flows.study.results import find_outcomes, summarise
from flows.study.rewards import draw_rewards
from flows.study.show import curves_csv, table_markdown
from flows.study.show_figures import figures_csv, figures_markdown
from schemas.commands import command
from schemas.records.ledger import RunRecord
from schemas.records.study import RunOutcome, Study, StudyResults
from schemas.records.study_figures import StudyFigures, VariantCost
from schemas.settings.data import WORLD
from schemas.settings.root import Settings
from sdsearch.world import load_evidence
from storage.database.connection import Database
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.runs.studies import write_study_files
from storage.workspace import Workspace

_COSTS: Final = """
    SELECT run, train_s, evaluate_s, sampled_tokens, update_tokens
    FROM (
        SELECT
            run,
            sum(duration_s) FILTER (stage <> 'evaluate') AS train_s,
            coalesce(sum(duration_s) FILTER (stage = 'evaluate'), 0) AS evaluate_s
        FROM stages WHERE status = 'done' AND run IN (SELECT unnest($runs)) GROUP BY run
    )
    JOIN (
        SELECT run, CAST(sum(num_completion_tokens) AS BIGINT) AS sampled_tokens FROM iteration_metrics GROUP BY run
    ) USING (run)
    JOIN (
        SELECT run, CAST(sum(update_num_tokens) AS BIGINT) AS update_tokens
        FROM (SELECT DISTINCT run, iteration, update_num_tokens FROM update_metrics) GROUP BY run
    ) USING (run)
"""


def report(study: Study, workspace: Workspace) -> StudyResults:
    """Write the study's table, figures and curves from what the runs have measured so far, and return them.

    Raises UserError when no run is finished, or a run exists with other settings.
    """
    planned = plan_runs(study)
    outcomes = find_outcomes(planned, _known_runs(study, planned, workspace), Database(workspace))
    if not any(outcome.finished for outcome in outcomes):
        raise UserError(
            f"study {study.name}: none of its {len(planned)} runs is finished in the workspace {workspace.root}; train "
            f"them with: {command('study', study.name, workspace=workspace.root)}"
        )
    results = summarise(study, outcomes, Database(workspace))
    finished = [outcome for outcome in outcomes if outcome.finished]
    results = results.model_copy(update={"figures": _figures(study, planned, finished, workspace)})
    write_study_files(workspace, study.name, _files(results))
    return results


def finished_runs(study: Study, planned: Sequence[PlannedRun], workspace: Workspace) -> set[str]:
    """Return the names of the runs that are finished; UserError when one exists with other settings."""
    records = _known_runs(study, planned, workspace)
    return {outcome.run for outcome in find_outcomes(planned, records, Database(workspace)) if outcome.finished}


def _known_runs(study: Study, planned: Sequence[PlannedRun], workspace: Workspace) -> Mapping[str, RunRecord]:
    """Return the records of the study's runs that exist; UserError when one has other settings."""
    ledger = Ledger(ArtifactStore(workspace))
    names = {plan.run for plan in planned}
    records = {record.run: record for record in ledger.list_runs() if record.run in names}
    for plan in planned:
        record = records.get(plan.run)
        if record and record.settings_hash != plan.settings.content_hash():
            raise UserError(
                f"study {study.name}: run '{plan.run}' exists with other settings "
                f"({describe_differences(record.settings_json, plan.settings)}); give the changed study another name, "
                "or change it back"
            )
    return records


def _figures(
    study: Study, planned: Sequence[PlannedRun], outcomes: Sequence[RunOutcome], workspace: Workspace
) -> tuple[StudyFigures, ...]:
    """Return the figures on the questions for choosing, and on those for reporting where they were read."""
    settings = planned[0].settings
    own = {o.run: {report.iteration: (o.run, report.iteration) for report in o.evaluations} for o in outcomes}
    finished = {outcome.run for outcome in outcomes}
    held_out = held_out_places(study, [plan for plan in planned if plan.run in finished], workspace)
    splits = {settings.evaluation.split: own} | ({study.protocol.report_split: held_out} if held_out else {})
    return tuple(
        figures
        for split, places in splits.items()
        if (figures := _figures_on(study, split, places, outcomes, settings, workspace)) is not None
    )


def _figures_on(
    study: Study,
    split: str,
    places: Mapping[str, Mapping[int, Place]],
    outcomes: Sequence[RunOutcome],
    settings: Settings,
    workspace: Workspace,
) -> StudyFigures | None:
    database, dataset = Database(workspace), settings.data.dataset
    answers = read_answers(database, places, dataset, split, _evidence(settings, split))
    finished = [outcome for outcome in outcomes if any(run == outcome.run for run, _ in answers)]
    if not answers:
        return None
    figures = compute_figures(study, finished, answers)
    any_answers = next(iter(answers.values()))
    return StudyFigures(
        study=study.name,
        dataset=dataset,
        split=split,
        num_questions=len(any_answers.questions),
        updates=any_answers.updates,
        rows=figures.rows,
        runs=figures.runs,
        costs=_costs(study, finished, database),
    )


def _evidence(settings: Settings, split: str) -> Evidence:
    """Return which passages each question needs: known of the embedded world alone."""
    is_embedded = settings.data.dataset == WORLD and settings.data.location_of(WORLD) == WORLD
    return load_evidence(split) if is_embedded else {}


def _costs(study: Study, finished: Sequence[RunOutcome], database: Database) -> tuple[VariantCost, ...]:
    rows = database.query(_COSTS, {"runs": [outcome.run for outcome in finished]}).to_pylist()
    by_run = {row.pop("run"): row for row in rows}
    costs = []
    for variant in study.variants:
        of_variant = [by_run[o.run] for o in finished if o.variant == variant and o.run in by_run]
        if of_variant:
            means = {name: sum(row[name] for row in of_variant) / len(of_variant) for name in of_variant[0]}
            costs.append(VariantCost(variant=variant, num_seeds=len(of_variant), **means))
    return tuple(costs)


def _files(results: StudyResults) -> dict[str, bytes]:
    rewards = draw_rewards(results)
    figures = {}
    for of_split in results.figures:
        figures[f"figures_{of_split.split}.md"] = figures_markdown(of_split, results).encode()
        figures[f"figures_{of_split.split}.csv"] = figures_csv(of_split).encode()
    return {
        **({} if rewards is None else {"rewards.svg": rewards}),
        **figures,
        "results.json": results.model_dump_json(indent=1).encode() + b"\n",
        "table.md": table_markdown(results, picture="curves.svg").encode(),
        "curves.csv": curves_csv(results).encode(),
        "curves.svg": draw_curves(results, "svg"),
        "curves.png": draw_curves(results, "png"),
    }
