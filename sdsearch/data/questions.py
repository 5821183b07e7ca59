"""Questions in their public forms, one reader for all: FlashRAG's columns, Search-R1's, the hub.

Files in Search-R1's form hold several data sets at once, which `data_source` tells apart.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, NamedTuple

from schemas.base import nearest_name
from schemas.paths import folder_or_name, local_path
from schemas.records.question import Question
from schemas.records.question_set import DroppedRows, QuestionSet
from schemas.settings.data import HUB, SetName
from sdsearch.data.file_readers import ReadFile, read_with, standard
from sdsearch.data.hub import hub_rows
from sdsearch.data.question_rows import question_of
from sdsearch.data.readers import BadRowError, DataError, Row, check_new, read_rows

_SOURCE_PREFIX: Final = "searchR1_"  # verl's own preparation of these files puts it before the data set's name.
DatasetRows = Iterable[tuple[str, Row | BadRowError]]


class ReadingRules(NamedTuple):
    """How questions are read: their own form, or one that ends with '?', and which share of rows may be bad."""

    question_mark: bool = False
    max_dropped_share: float = 0.0


class LoadedSet(NamedTuple):
    """The questions of a data set's split, in the source's order, and what was left out."""

    questions: list[Question]
    report: QuestionSet


def rows_at(location: str, name: SetName, reader: ReadFile = standard) -> DatasetRows:
    """Return the rows of a data set's split: of the hub where the place begins with 'hub:', else of a file.

    DataError, when the rows are taken, for what is not there or cannot be read.
    """
    if location.startswith(HUB):
        return hub_rows(folder_or_name(location.removeprefix(HUB)), name)
    return read_with(reader, file_at(location, name), name)


def file_at(location: str, name: SetName) -> Path:
    """Return the file of a data set's split, where the place names files."""
    return local_path(location.replace("{dataset}", name.dataset).replace("{split}", name.split))


def read_questions(path: Traversable, dataset: str, split: str) -> list[Question]:
    """Return the questions of a file as they are; DataError for the first row that cannot be used."""
    return collect(read_rows(path), str(path), SetName(dataset, split), ReadingRules()).questions


def collect(rows: DatasetRows, location: str, name: SetName, rules: ReadingRules) -> LoadedSet:
    """Return the questions of a data set's split among rows, and which rows were left out and why.

    Rows whose data_source names another data set are no part of it. Raises DataError for columns that are neither
    FlashRAG's nor Search-R1's, more bad rows than the rules allow, and a set without questions.
    """
    questions: list[Question] = []
    bad: list[BadRowError] = []
    seen: set[str] = set()
    elsewhere: Counter[str] = Counter()
    for where, row in rows:
        try:
            source = _source_of(row)
            if source not in (None, name.dataset):
                elsewhere[str(source)] += 1
                continue
            question = question_of(row, where, name, question_mark=rules.question_mark)
            check_new(question.id, seen, where)
            questions.append(question)
        except BadRowError as error:
            if not rules.max_dropped_share:
                raise
            bad.append(error)
    _check_kept(questions, bad, elsewhere, location, name, rules)
    report = QuestionSet(
        dataset=name.dataset,
        split=name.split,
        location=location,
        num_rows=len(questions) + len(bad),
        num_kept=len(questions),
        dropped=_by_reason(bad),
        questions_sha256=questions_hash(questions),
    )
    return LoadedSet(questions, report)


def leave_out(loaded: LoadedSet, unfit: Mapping[str, BadRowError], rules: ReadingRules) -> LoadedSet:
    """Return a data set's split without some questions, by their keys: they count as bad rows do.

    Raises DataError for more bad rows than the rules allow, and for a set of which nothing is left.
    """
    if not unfit:
        return loaded
    report = loaded.report
    name = SetName(report.dataset, report.split)
    kept = [question for question in loaded.questions if question.key not in unfit]
    dropped = _merged(report.dropped, _by_reason(list(unfit.values())))
    _check_share(next(iter(unfit.values())), dropped, report.num_rows, name, rules)
    if not kept:
        raise DataError(f"{report.location}: no question of {name} is left; {dropped[0].example}")
    changes = {"num_kept": len(kept), "dropped": dropped, "questions_sha256": questions_hash(kept)}
    return LoadedSet(kept, report.model_copy(update=changes))


def glance(rows: DatasetRows, location: str, name: SetName) -> None:
    """Raise DataError when the first row is not of a form that can be read: a look at a file, not a check of it."""
    first = next(iter(rows), None)
    if first is None:
        raise DataError(f"{location}: there are no questions of {name}; expected one per row")
    collect([first], location, SetName(_source_of(first[1]) or name.dataset, name.split), ReadingRules())


def questions_hash(questions: Iterable[Question]) -> str:
    """Return the sha256 (hex) of the questions' ids, texts, answers and categories, in order."""
    digest = hashlib.sha256()
    for question in questions:
        content = [question.id, question.question, question.golden_answers, question.category]
        digest.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _check_kept(
    questions: Sequence[Question],
    bad: Sequence[BadRowError],
    elsewhere: Mapping[str, int],
    location: str,
    name: SetName,
    rules: ReadingRules,
) -> None:
    if bad:
        _check_share(bad[0], _by_reason(bad), len(questions) + len(bad), name, rules)
    if not questions and elsewhere:
        near = nearest_name(name.dataset, list(elsewhere))
        hint = f"did you mean '{near}'?" if near else "name one of them"
        raise DataError(
            f"{location}: no data set '{name.dataset}' (split {name.split}) in it; its data_source has "
            f"{', '.join(sorted(elsewhere))}: {hint}"
        )
    if not questions:
        raise DataError(f"{location}: there are no questions of {name}; expected one per row")


def _check_share(
    first: BadRowError, dropped: Sequence[DroppedRows], num_rows: int, name: SetName, rules: ReadingRules
) -> None:
    num_bad = sum(group.num_rows for group in dropped)
    if num_bad > rules.max_dropped_share * num_rows:
        reasons = ", ".join(f"{group.num_rows} with {group.reason}" for group in dropped)
        raise DataError(
            f"{first}; {num_bad} of {num_rows} rows of {name} cannot be used ({reasons}), more than "
            f"data.max_dropped_share = {rules.max_dropped_share} allows"
        )


def _merged(one: Sequence[DroppedRows], other: Sequence[DroppedRows]) -> tuple[DroppedRows, ...]:
    return tuple(sorted([*one, *other], key=lambda group: -group.num_rows))


def _by_reason(bad: Sequence[BadRowError]) -> tuple[DroppedRows, ...]:
    first: dict[str, str] = {}
    for error in bad:
        first.setdefault(error.reason, str(error))
    counts = Counter(error.reason for error in bad)
    return tuple(DroppedRows(reason=r, num_rows=n, example=first[r]) for r, n in counts.most_common())


def _source_of(row: Row | BadRowError) -> str | None:
    """Return the data set that a row says it belongs to, None where it does not say."""
    source = None if isinstance(row, BadRowError) else row.get("data_source")
    return source.removeprefix(_SOURCE_PREFIX) if isinstance(source, str) else None
