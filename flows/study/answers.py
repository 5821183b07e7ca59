"""What the runs of a study answered, question by question, as arrays that every figure is computed from.

Letters: Q questions, P points (numbers of updates).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from flows.console.errors import UserError
from schemas.records.evaluation import EvaluationMode
from schemas.records.study_figures import PointFigure
from sdsearch.evaluation.intervals import Floats
from storage.database.connection import Database

_ANSWERS: Final = """
    SELECT run, iteration, mode, question_key, em, f1, num_hits, num_golden_hits, len(queries) AS num_searches, found
    FROM evaluation_answers
    WHERE run IN (SELECT unnest($runs)) AND split = $split AND dataset = $dataset
    ORDER BY run, mode, iteration, question_key
"""
Evidence = Mapping[str, tuple[frozenset[str], ...]]
"""A question's key -> for each fact that it needs, the ids of the passages that say it."""
Place = tuple[str, int]
"""The run that evaluated, and its iteration."""


class Parts(NamedTuple):
    """A figure as the ratio of two sums over questions."""

    numerators_QP: Floats
    denominators_QP: Floats


class Answers(NamedTuple):
    """What one run answered in one mode."""

    questions: tuple[str, ...]
    updates: tuple[int, ...]
    parts: dict[PointFigure, Parts]


def read_answers(
    database: Database,
    places: Mapping[str, Mapping[int, Place]],
    dataset: str,
    split: str,
    evidence: Evidence,
) -> dict[tuple[str, EvaluationMode], Answers]:
    """Return the answers of each trained run and mode; `places` says for a run and its updates who evaluated them.

    Raises UserError for a run that answered other questions after some updates than after others.
    """
    evaluators = sorted({place[0] for of_run in places.values() for place in of_run.values()})
    rows: dict[tuple[Place, EvaluationMode], list[dict[str, object]]] = {}
    parameters = {"runs": evaluators, "split": split, "dataset": dataset}
    for row in database.query(_ANSWERS, parameters).to_pylist():
        rows.setdefault(((row["run"], row["iteration"]), row["mode"]), []).append(row)
    modes: list[EvaluationMode] = sorted({mode for _, mode in rows})
    found = {}
    for run, of_run in places.items():
        for mode in modes:
            points = {updates: rows[place, mode] for updates, place in of_run.items() if (place, mode) in rows}
            if points:
                found[run, mode] = _answers(run, points, evidence)
    return found


def _answers(run: str, points: Mapping[int, Sequence[Mapping[str, object]]], evidence: Evidence) -> Answers:
    updates = tuple(sorted(points))
    keys = [tuple(str(row["question_key"]) for row in points[number]) for number in updates]
    if any(of_point != keys[0] for of_point in keys):
        raise UserError(
            f"run '{run}' answered other questions after some updates than after others, so that its curve means "
            "nothing; give the study another name and train it again"
        )

    def column(name: str) -> Floats:
        return np.array([[row[name] for row in points[number]] for number in updates], dtype=np.float64).T

    em_QP, golden_QP = column("em"), column("num_golden_hits")
    found_QP, ones_QP = (golden_QP > 0).astype(np.float64), np.ones_like(em_QP)
    parts: dict[PointFigure, Parts] = {
        "em": Parts(em_QP, ones_QP),
        "found": Parts(found_QP, ones_QP),
        "read": Parts(em_QP * found_QP, found_QP),
        "f1": Parts(column("f1"), ones_QP),
        "search_quality": Parts(golden_QP, column("num_hits")),
        "searches": Parts(column("num_searches"), ones_QP),
    }
    if all(key in evidence for key in keys[0]):
        rows = [points[number] for number in updates]
        shown_QP = np.array([[_has_all(row, evidence) for row in of_point] for of_point in rows], dtype=np.float64).T
        parts["evidence"] = Parts(shown_QP, ones_QP)
    return Answers(keys[0], updates, parts)


def _has_all(row: Mapping[str, object], evidence: Evidence) -> bool:
    """True where for every fact that a question needs one of its passages was found."""
    searches = row["found"]
    assert isinstance(searches, list)
    found = {passage for search in searches for passage in search}
    return all(found & fact for fact in evidence[str(row["question_key"])])
