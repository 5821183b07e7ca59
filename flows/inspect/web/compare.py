"""The page that compares: runs and variants of studies on the same axes, and the questions that two of them flipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from flows.inspect.web.charts import Chart, compared, over_seeds
from flows.inspect.web.runs import charts_of
from flows.inspect.web.source import NotThereError, Row, Rows, Source
from flows.run.status import shown_status
from schemas.records.ledger import RunRecord
from schemas.records.study import Study
from storage.runs.studies import list_studies

_FLIPPED: Final = """
    WITH ends AS (
        SELECT *, min(iteration) OVER (PARTITION BY run) AS oldest, max(iteration) OVER (PARTITION BY run) AS newest
        FROM evaluation_answers
        WHERE mode = 'greedy' AND (list_contains($first, run) OR list_contains($second, run))
    ), sides AS (
        SELECT 1 AS side, * FROM ends
        WHERE list_contains($first, run) AND iteration = CASE WHEN $first = $second THEN oldest ELSE newest END
        UNION ALL
        SELECT 2 AS side, * FROM ends WHERE list_contains($second, run) AND iteration = newest
    ), told AS (
        SELECT side, question_key, any_value(question) AS question, any_value(golden_answers) AS golden_answers,
            avg(em) AS em, {'num_right': count(*) FILTER (em = 1), 'num_runs': count(*),
                'answers': list(coalesce(answer, '–') ORDER BY run), 'queries': list(queries ORDER BY run)} AS said
        FROM sides GROUP BY side, question_key
    )
    SELECT a.question, a.golden_answers, a.said AS first, b.said AS second
    FROM told AS a JOIN told AS b USING (question_key)
    WHERE a.side = 1 AND b.side = 2 AND (a.em > 0.5) <> (b.em > 0.5)
    ORDER BY row_number() OVER (
        PARTITION BY a.em > 0.5 ORDER BY abs(a.em - b.em) DESC, a.question_key
    ), a.em > 0.5 LIMIT 200
"""


class Side(NamedTuple):
    """What is compared: a run, or a variant of a study with its runs, a seed each."""

    value: str  # What the address calls it: RUN, or STUDY/VARIANT.
    label: str
    records: tuple[RunRecord, ...]
    is_variant: bool

    @property
    def runs(self) -> list[str]:
        """The names of its runs."""
        return [record.run for record in self.records]


def compare_page(source: Source, asked: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return runs and variants on the same axes, and the questions that the first and another of them flipped.

    `asked` are the address's names and values: `run=RUN`, `variant=STUDY/VARIANT`, `study=STUDY` for all its variants,
    `other=N` for the place of the other one. NotThereError for what the workspace does not have.
    """
    studies, records = list_studies(source.workspace), source.runs()
    sides = list(dict.fromkeys(side for name, value in asked for side in _sides(source, studies, name, value)))
    other = _other(dict(asked).get("other", ""), len(sides))
    with source.rows() as rows:
        charts = {side.label: _charts_of_side(source, rows, side) for side in sides}
        flips = flipped(rows, sides[0].runs, sides[other].runs) if len(sides) > 1 else []
    of_studies = {name for study in studies for name in _run_names(study)}
    return {
        "sides": sides,
        "chosen": {(side.is_variant, side.value) for side in sides},
        "other": other,
        "single_runs": [record.run for record in records if record.run not in of_studies],
        "studies": [_of_study(study, records) for study in studies],
        "charts": [chart.as_json() for chart in compared(charts)],
        "flipped": flips,
        "is_live": any(shown_status(source.workspace, r) == "running" for side in sides for r in side.records),
    }


def _other(asked: str, num_sides: int) -> int:
    return int(asked) if asked.isdecimal() and 0 < int(asked) < num_sides else 1


def _sides(source: Source, studies: Sequence[Study], name: str, value: str) -> list[Side]:
    if name == "run":
        return [Side(value, value, (source.run(value),), is_variant=False)]
    if name not in ("study", "variant"):
        return []
    of_study, _, only = value.partition("/")
    study = next((each for each in studies if each.name == of_study), None)
    if study is None or (name == "variant" and only not in study.variants):
        known = ", ".join(f"{each.name}/{variant}" for each in studies for variant in each.variants) or "none"
        raise NotThereError(f"the workspace has no {name} '{value}'; variants of studies: {known}")
    baseline_first = sorted(study.variants, key=lambda variant: variant != study.baseline)
    return [_variant(source, study, each) for each in ([only] if name == "variant" else baseline_first)]


def _variant(source: Source, study: Study, variant: str) -> Side:
    """Return a variant with its finished runs; with those that have begun where none is finished."""
    names = {study.run_of(variant, seed) for seed in study.seeds}
    begun = [record for record in source.runs() if record.run in names]
    shown = [record for record in begun if record.status == "done"] or begun
    seeds = f"{len(shown)} of {len(study.seeds)} seeds" if len(shown) < len(study.seeds) else f"{len(shown)} seeds"
    label = f"{study.title_of(variant)} ({study.name}, {'1 seed' if len(study.seeds) == 1 else seeds})"
    return Side(f"{study.name}/{variant}", label, tuple(sorted(shown, key=lambda r: r.seed)), is_variant=True)


def _charts_of_side(source: Source, rows: Rows, side: Side) -> list[Chart]:
    of_runs = [charts_of(source, rows, record) for record in side.records]
    return over_seeds(of_runs) if side.is_variant else of_runs[0]


def _of_study(study: Study, records: Sequence[RunRecord]) -> dict[str, Any]:
    """Return a study as the page offers it: its variants, and those of its runs that have begun."""
    names = _run_names(study)
    return {"study": study, "runs": sorted(record.run for record in records if record.run in names)}


def _run_names(study: Study) -> set[str]:
    return {study.run_of(variant, seed) for variant in study.variants for seed in study.seeds}


def flipped(rows: Rows, first: Sequence[str], second: Sequence[str]) -> list[Row]:
    """Return the dev questions that two sides' newest greedy evaluations answer differently, both ways by turns.

    A side with several runs (seeds) answers right where more than half of them do. Of a side and itself: what its first
    and its newest evaluation answer differently. Each row has `first` and `second`: `num_right` of `num_runs`, the
    `answers` with how many gave each, the `queries`.
    """
    found = rows.all(_FLIPPED, first=list(first), second=list(second))
    return [{**row, **{side: _said(row[side]) for side in ("first", "second")}} for row in found]


def _said(said: Row) -> Row:
    return {
        **said,
        "answers": Counter(said["answers"]).most_common(),
        "queries": list(dict.fromkeys(query for queries in said["queries"] for query in queries)),
    }
