"""`sdsearch data answerability`: which questions can be answered from what is searched; EM on these questions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple, assert_never

from rich.console import Console

from flows.console.terminal import make_table, print_line
from flows.data.questions import Questions
from flows.evaluation.conditions import searched
from flows.evaluation.plan import chosen_sets
from flows.retrieval.corpora import find_corpus
from flows.retrieval.live import LiveRetriever
from schemas.records.answerability import Answerability, QuestionAnswerability
from schemas.records.evaluation import HASH_CHARS, EvaluationAnswer, EvaluationConditions
from schemas.records.question import Question
from schemas.settings.data import SetName
from schemas.settings.retrieval import (
    BM25RetrievalSettings,
    DenseRetrievalSettings,
    HttpRetrievalSettings,
    HybridRetrievalSettings,
    PluginRetrievalSettings,
    RetrievalSettings,
)
from schemas.settings.root import Settings
from sdsearch.evaluation.answerability import in_any_passage, in_top_passages
from storage.data.answerability import NO_FILE
from storage.errors import DamagedArtifactError
from storage.retrieval.corpora import StoredCorpus
from storage.storage import Storage
from storage.workspace import Workspace

NO_CORPUS: Final = (
    "passages behind a server or a plugin cannot be read here: only what the questions find was looked at"
)


class _Asked(NamedTuple):
    """A split's questions, and their hash."""

    name: SetName
    questions: Sequence[Question]
    sha256: str


def count_and_print(settings: Settings, datasets: str | None, storage: Storage, console: Console) -> None:
    """Count, keep and print a row a data set; UserError for a set or a retriever that cannot be used."""
    questions = Questions(settings.data)
    loaded = [(name, questions.load(name)) for name in _sets(settings, datasets)]
    asked = [_Asked(name, found, report.questions_sha256) for name, (found, report) in loaded]
    counts = count(settings, asked, storage, console)
    columns = ("data set", "split", "questions", "in the corpus", f"in the top {settings.retrieval.num_passages}")
    console.print(make_table(columns, [_row(each) for each in counts]))
    corpus, *how = searched(settings.retrieval)
    print_line(
        console,
        f"searched: {corpus} ({', '.join(filter(None, how))}), index {counts[0].index_hash[:HASH_CHARS]}; "
        "tables of evaluations of these questions with this index have EM on the answerable part",
    )
    if counts[0].num_in_corpus is None:
        print_line(console, NO_CORPUS)
    print_line(console, f"a row a question: {storage.workspace.answerability}")


def count(settings: Settings, asked: Sequence[_Asked], storage: Storage, console: Console) -> list[Answerability]:
    """Return how much of each set can be answered; a corpus that was looked through for a set is not read again."""
    corpus = _corpus(settings.retrieval, storage.workspace)
    with closing(LiveRetriever(settings.retrieval, storage.workspace)) as live:
        in_corpus = _in_corpus(asked, corpus, storage, console)
        counts = []
        for of_set, flags in zip(asked, in_corpus, strict=True):
            with console.status(f"searching for the {len(of_set.questions)} questions of {of_set.name}"):
                in_top = list(in_top_passages(of_set.questions, live.retriever, settings.retrieval.num_passages))
            rows = [
                QuestionAnswerability(
                    question_key=question.key, golden_answers=question.golden_answers, in_corpus=held, in_top_k=found
                )
                for question, held, found in zip(of_set.questions, flags, in_top, strict=True)
            ]
            counted = Answerability(
                dataset=of_set.name.dataset,
                split=of_set.name.split,
                questions_sha256=of_set.sha256,
                corpus=searched(settings.retrieval)[0],
                corpus_sha256="" if corpus is None else corpus.manifest.source_sha256,
                index_hash=live.fingerprint,
                num_passages=settings.retrieval.num_passages,
                num_questions=len(rows),
                num_in_corpus=None if corpus is None else sum(map(bool, flags)),
                num_in_top_k=sum(in_top),
                file=NO_FILE,
            )
            counts.append(storage.answerability.write(counted, rows))
    return counts


def answerable_answers(
    storage: Storage, conditions: EvaluationConditions | None, answers: Sequence[EvaluationAnswer]
) -> list[bool] | None:
    """Return for each answer of an evaluation whether its question can be answered from the corpus.

    None where nobody has counted that for this index, set and questions, or where the corpus could not be read.
    """
    if conditions is None:
        return None
    for counted in storage.answerability.of_set(conditions.dataset, conditions.split):
        if counted.index_hash != conditions.index_hash or counted.num_in_corpus is None:
            continue
        try:
            rows = {
                (row.question_key, row.golden_answers): row.in_corpus for row in storage.answerability.read(counted)
            }
        except DamagedArtifactError:
            continue
        flags = [rows.get((answer.question_key, answer.golden_answers)) for answer in answers]
        if None not in flags:
            return [bool(flag) for flag in flags]
    return None


def _sets(settings: Settings, datasets: str | None) -> list[SetName]:
    """Return the sets that `--datasets` names; else all that the settings evaluate on."""
    if datasets is not None:
        return list(chosen_sets(settings, datasets, None))
    evaluated = [each.name for each in settings.evaluation.sets_of_run(settings.data)]
    return list(dict.fromkeys([*evaluated, *settings.data.test_sets(settings.evaluation.split)]))


def _corpus(settings: RetrievalSettings, workspace: Workspace) -> StoredCorpus | None:
    """Return what is searched where its passages can be read, else None."""
    match settings:
        case DenseRetrievalSettings() | HybridRetrievalSettings() | BM25RetrievalSettings():
            return find_corpus(settings.corpus, workspace)
        case HttpRetrievalSettings() | PluginRetrievalSettings():
            return None
        case unknown:
            assert_never(unknown)


def _in_corpus(
    asked: Sequence[_Asked], corpus: StoredCorpus | None, storage: Storage, console: Console
) -> list[Sequence[bool | None]]:
    """Return for each set, and each of its questions, whether a passage contains a golden answer.

    All sets that are not known yet are looked for in one pass over the corpus.
    """
    if corpus is None:
        return [[None] * len(of_set.questions) for of_set in asked]
    known = [_known(of_set, corpus, storage) for of_set in asked]
    unknown = [
        question for of_set, flags in zip(asked, known, strict=True) if flags is None for question in of_set.questions
    ]
    number = len(corpus.passages)
    with console.status("reading the corpus") as status:

        def read(done: int) -> None:
            status.update(f"reading the corpus: {done:,} of {number:,} passages")

        found = iter(in_any_passage(unknown, corpus.passages.contents(0, number), read) if unknown else [])
    return [
        [next(found) for _ in of_set.questions] if flags is None else flags
        for of_set, flags in zip(asked, known, strict=True)
    ]


def _known(of_set: _Asked, corpus: StoredCorpus, storage: Storage) -> Sequence[bool | None] | None:
    """Return what was counted before of the same questions and corpus, whatever index found them."""
    for counted in storage.answerability.of_set(*of_set.name):
        same = (counted.corpus_sha256, counted.questions_sha256)
        if same == (corpus.manifest.source_sha256, of_set.sha256):
            try:
                return [row.in_corpus for row in storage.answerability.read(counted)]
            except DamagedArtifactError:
                continue
    return None


def _row(counted: Answerability) -> tuple[object, ...]:
    number, held = counted.num_questions, counted.num_in_corpus
    share = None if held is None else f"{held / number:.3f}"
    return counted.dataset, counted.split, number, share, f"{counted.num_in_top_k / number:.3f}"
