"""A study's figures: at given updates and of whole curves, compared with the baseline, with what they cost.

Letters: R resamples, W weightings of the questions (the data's own, then R resamples), S seeds, P points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from flows.console.errors import UserError
from flows.study.answers import Answers
from flows.study.results import estimate
from schemas.records.evaluation import EvaluationMode
from schemas.records.study import RunOutcome, Study
from schemas.records.study_figures import (
    CurveFigure,
    FigureDifference,
    FigureName,
    FigureRow,
    PointFigure,
    PrimaryFigure,
    RunFigure,
)
from sdsearch.evaluation.curves import area_under, updates_until, weighted_ratios
from sdsearch.evaluation.intervals import Floats, Resamples, compare_figures, draw_resamples, holm
from sdsearch.seeds import derive_seed

_MIN_SEEDS_FOR_TEST = 2
Key = tuple[EvaluationMode, FigureName, int | None]


class Figures(NamedTuple):
    """The rows of the tables, and the same for each run."""

    rows: tuple[FigureRow, ...]
    runs: tuple[RunFigure, ...]


class _Measured(NamedTuple):
    """The figures of one run, for the data and for every resample of the questions."""

    outcome: RunOutcome
    values_W: dict[Key, Floats]
    reached: set[EvaluationMode]  # Where EM was at the protocol's threshold or above.


def compute_figures(
    study: Study, finished: Sequence[RunOutcome], answers: Mapping[tuple[str, EvaluationMode], Answers]
) -> Figures:
    """Return the figures of the finished runs; UserError when they answered other questions than each other."""
    resamples = _resamples(study, finished, answers)
    measured = [
        _measure(
            study, outcome, {mode: found for (run, mode), found in answers.items() if run == outcome.run}, resamples
        )
        for outcome in finished
    ]
    keys = sorted({key for run in measured for key in run.values_W}, key=_order)
    rows = [
        row
        for key in keys
        for variant in study.variants
        if (row := _row(study, variant, key, measured, resamples)) is not None
    ]
    runs = tuple(
        RunFigure(
            run=run.outcome.run,
            variant=run.outcome.variant,
            seed=run.outcome.seed,
            mode=mode,
            figure=figure,
            updates=updates,
            value=float(run.values_W[mode, figure, updates][0]),
        )
        for run in measured
        for mode, figure, updates in keys
        if (mode, figure, updates) in run.values_W
    )
    return Figures(tuple(_corrected(rows)), runs)


def _resamples(
    study: Study, finished: Sequence[RunOutcome], answers: Mapping[tuple[str, EvaluationMode], Answers]
) -> Resamples:
    """Draw the questions that all runs answered; each variant's comparison draws among its own seeds."""
    questions = {answers[key].questions for key in answers}
    if len(questions) > 1:
        names = ", ".join(sorted({run for run, _ in answers}))
        raise UserError(
            f"study {study.name}: its runs were evaluated on different questions ({names}), so that they cannot be "
            "paired; give the study another name and train it again"
        )
    num_questions = len(next(iter(questions)))
    return draw_resamples(len(study.seeds), num_questions, seed=derive_seed("figures", study.name))


def _measure(
    study: Study, outcome: RunOutcome, answers: Mapping[EvaluationMode, Answers], resamples: Resamples
) -> _Measured:
    measured = _Measured(outcome, {}, set())
    own_Q = np.ones((1, resamples.questions_RQ.shape[1]), dtype=np.int64)
    weights_WQ = np.concatenate([own_Q, resamples.questions_RQ])
    protocol = study.protocol
    for mode, answered in answers.items():
        shown = protocol.updates or answered.updates
        for figure, parts in answered.parts.items():
            values_WP = weighted_ratios(*parts, weights_WQ)
            for place, updates in enumerate(answered.updates):
                if updates in shown:
                    measured.values_W[mode, figure, updates] = values_WP[:, place]
            num_points = sum(updates <= max(shown) for updates in answered.updates)
            if figure == "em" and num_points > 1:
                curve_WP, updates_P = values_WP[:, :num_points], np.array(answered.updates[:num_points], dtype=float)
                measured.values_W[mode, "em_area", None] = area_under(curve_WP, updates_P)
                until_W = updates_until(curve_WP, updates_P, protocol.threshold)
                measured.values_W[mode, "updates_until", None] = until_W
                if curve_WP[0].max() >= protocol.threshold:
                    measured.reached.add(mode)
    return measured


def _row(study: Study, variant: str, key: Key, measured: Sequence[_Measured], resamples: Resamples) -> FigureRow | None:
    runs = [run for run in measured if run.outcome.variant == variant and key in run.values_W]
    if not runs:
        return None
    mode, figure, updates = key
    own = [float(run.values_W[key][0]) for run in runs]
    return FigureRow(
        variant=variant,
        mode=mode,
        figure=figure,
        updates=updates,
        is_primary=is_primary(study, key),
        num_seeds=len(runs),
        num_reached=sum(mode in run.reached for run in runs) if figure == "updates_until" else None,
        value=estimate(own),
        difference=None if variant == study.baseline else _difference(study, key, runs, measured, resamples),
    )


def _difference(
    study: Study, key: Key, runs: Sequence[_Measured], measured: Sequence[_Measured], resamples: Resamples
) -> FigureDifference | None:
    baseline = {
        run.outcome.seed: run.values_W[key]
        for run in measured
        if run.outcome.variant == study.baseline and key in run.values_W
    }
    pairs = [(run.values_W[key], baseline[run.outcome.seed]) for run in runs if run.outcome.seed in baseline]
    if not pairs:
        return None
    differences_WS = np.stack([own_W - other_W for own_W, other_W in pairs], axis=1)
    num_resamples, num_questions = resamples.questions_RQ.shape
    seeds_RS = resamples.seeds_RS
    if len(pairs) != seeds_RS.shape[1]:
        seeds_RS = draw_resamples(
            len(pairs), 1, seed=derive_seed("figures", study.name, len(pairs)), num_resamples=num_resamples
        ).seeds_RS
    found = compare_figures(differences_WS[0], differences_WS[1:], seeds_RS)
    return FigureDifference(
        mean=found.mean,
        low=found.low,
        high=found.high,
        p_value=found.p_value if len(pairs) >= _MIN_SEEDS_FOR_TEST else None,
        p_holm=None,
        num_seeds=len(pairs),
        num_questions=num_questions,
    )


def is_primary(study: Study, key: Key) -> bool:
    """Whether a figure was chosen before the results: as the protocol names it, else the area under EM."""
    mode, figure, updates = key
    if not study.protocol.primary:
        return figure == "em_area"
    return PrimaryFigure(figure=figure, mode=mode, updates=updates) in study.protocol.primary


def _corrected(rows: Sequence[FigureRow]) -> list[FigureRow]:
    """Return the rows with the p-values of the primary comparisons corrected for their number, over all variants."""
    tested = {
        place: row.difference
        for place, row in enumerate(rows)
        if row.is_primary and row.difference is not None and row.difference.p_value is not None
    }
    adjusted = holm([difference.p_value for difference in tested.values() if difference.p_value is not None])
    corrected = list(rows)
    for (place, difference), p_holm in zip(tested.items(), adjusted, strict=True):
        changed = difference.model_copy(update={"p_holm": p_holm})
        corrected[place] = corrected[place].model_copy(update={"difference": changed})
    return corrected


def _order(key: Key) -> tuple[str, int, int]:
    mode, figure, updates = key
    return mode, _place(figure), -1 if updates is None else updates


def _place(figure: FigureName) -> int:
    names: tuple[FigureName, ...] = (*get_args(CurveFigure), *get_args(PointFigure))
    return names.index(figure)
