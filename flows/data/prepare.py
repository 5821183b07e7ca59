"""`sdsearch data prepare`: reads every data set that the settings name, keeps it, and says what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from flows.console.errors import UserError
from flows.console.terminal import make_table, print_line
from flows.data.questions import Questions
from flows.doctor.hub import model_files
from schemas.records.question import Question
from schemas.records.question_set import QuestionSet
from schemas.settings.data import SetName
from schemas.settings.root import Settings
from sdsearch.credit.scoring import normalises_to_nothing
from sdsearch.data.hub import HubUnreachableError
from sdsearch.data.questions import LoadedSet
from sdsearch.data.readers import short
from sdsearch.unspaced import has_unspaced
from storage.storage import Storage

if TYPE_CHECKING:
    from flows.run.prompts import PromptMeasure  # torch, which is loaded where there is a tokenizer

_HASH_CHARS = 12


def prepare(settings: Settings, storage: Storage, console: Console) -> None:
    """Read, keep and print the data sets that are trained on, evaluated on and tested.

    Raises UserError, one line a data set, when one cannot be used; nothing is written then.
    """
    with console.status("reading the questions"):
        measure, unmeasured = _prompt_measure(settings)
        loaded = load_all(settings, measure)
    with console.status("writing the questions"):
        for questions, report in loaded:
            prepared = storage.question_sets.write(report, questions)
            storage.question_sets.index(storage.database, prepared, questions)
    reports = [report for _, report in loaded]
    console.print(make_table(("data set", "split", "rows", "kept", "dropped", "hash", "read from"), _rows(reports)))
    for report in reports:
        for group in report.dropped:
            print_line(console, f"dropped from {report.dataset}:{report.split}, {group.reason}: {group.example}")
    for questions, report in loaded:
        for line in _unusual_answers(questions):
            print_line(console, f"{report.dataset}:{report.split}: {line}")
    print_line(console, unmeasured or _longest(loaded, measure))
    kept = sum(report.num_kept for report in reports)
    print_line(console, f"{kept} questions in {storage.workspace.questions}; tables question_sets, prepared_questions")


def named_sets(settings: Settings) -> list[SetName]:
    """Return each data set's split that the settings name, once, in the order of their use."""
    data, evaluation = settings.data, settings.evaluation
    evaluated = [each.name for each in evaluation.sets_of_run(data)]
    return list(dict.fromkeys([*data.training_sets, *evaluated, *data.test_sets(evaluation.split)]))


def load_all(settings: Settings, measure: PromptMeasure | None = None) -> list[LoadedSet]:
    """Return every data set that the settings name; UserError, one line each, for those that cannot be used.

    Without a measure of their prompts no question is too long.
    """
    questions = Questions(settings.data, measure.find_unfit if measure else None)
    loaded: list[LoadedSet] = []
    problems: list[str] = []
    unreachable: set[str] = set()
    for name in named_sets(settings):
        location = settings.data.location_of(name.dataset)
        try:
            if location not in unreachable:
                loaded.append(questions.load(name))
        except HubUnreachableError as error:
            unreachable.add(location)
            problems.append(str(error))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    _ = questions.curriculum
    return loaded


def _prompt_measure(settings: Settings) -> tuple[PromptMeasure | None, str]:
    """Return what measures prompts, or why there is nothing: data sets are prepared also where no model is."""
    path = settings.model.path
    files = model_files(path)
    if "tokenizer" in files.missing:
        return None, f"prompts were not measured: the tokenizer of '{path}' is not here; doctor and train measure them"
    from flows.run.prompts import measure_without_policy

    try:
        return measure_without_policy(settings, files.config or {}), ""
    except UserError as error:
        return None, f"prompts were not measured: {error}"


def _longest(loaded: Sequence[LoadedSet], measure: PromptMeasure | None) -> str:
    assert measure is not None, "prompts were measured"
    longest = max(max(measure.lengths(questions)) for questions, _ in loaded)
    return f"the longest prompt has {longest} tokens; at most {measure.max_tokens} may be"


def _unusual_answers(questions: Sequence[Question]) -> Iterator[str]:
    """Yield what a person should know of golden answers that scores treat otherwise, or hardly measure."""
    golden = [(question, answer) for question in questions for answer in question.golden_answers]
    if empty := [pair for pair in golden if normalises_to_nothing(pair[1])]:
        yield (
            f"{_num_questions(empty)} a golden answer of articles or punctuation alone, such as "
            f"{_example(empty)}: it is compared with them, and is in no passage"
        )
    if unspaced := [pair for pair in golden if has_unspaced(pair[1])]:
        yield (
            f"{_num_questions(unspaced)} a golden answer in a script without blanks between words, such as "
            f"{_example(unspaced)}: F1 counts words between blanks, so it is mostly 0 or 1 here, as EM is"
        )


def _num_questions(golden: Sequence[tuple[Question, str]]) -> str:
    number = len({question.key for question, _ in golden})
    return f"{number} questions have" if number > 1 else "1 question has"


def _example(golden: Sequence[tuple[Question, str]]) -> str:
    question, answer = golden[0]
    return f"{short(answer)} of {question.id}"


def _rows(reports: Sequence[QuestionSet]) -> list[tuple[object, ...]]:
    return [
        (
            report.dataset,
            report.split,
            report.num_rows,
            report.num_kept,
            ", ".join(f"{group.num_rows} {group.reason}" for group in report.dropped) or "0",
            report.questions_sha256[:_HASH_CHARS],
            report.location,
        )
        for report in reports
    ]
