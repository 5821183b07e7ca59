"""The embedded world: a corpus of real facts and questions about it, read as any other data set."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Literal, get_args

from schemas.errors import UserError
from schemas.records.passage import Passage
from schemas.records.question import Question
from schemas.settings.data import WORLD
from sdsearch.data.questions import read_questions
from sdsearch.data.readers import BadRowError, read_passages, read_rows

Split = Literal["train", "dev", "test"]


def corpus_file() -> Traversable:
    """Return the embedded corpus file, in Search-R1's form."""
    return files(__name__) / "data" / "passages.jsonl"


def load_passages() -> list[Passage]:
    """Return the embedded corpus, in the order of its ids."""
    return list(read_passages(corpus_file()))


def question_file(dataset: str, split: str) -> Traversable:
    """Return the file of a split, in FlashRAG's form; splits share no country and no element.

    Raises UserError for another data set, and for a split that the world does not have.
    """
    if dataset != WORLD:
        raise UserError(
            f"no data set '{dataset}': the embedded one is called '{WORLD}'; say in data.questions or data.sets where "
            "it lies"
        )
    if split not in get_args(Split):
        raise UserError(f"the embedded world has no split '{split}'; choose one of {', '.join(get_args(Split))}")
    return files(__name__) / "data" / f"questions_{split}.jsonl"


def load_questions(split: str) -> list[Question]:
    """Return the questions of a split; UserError for one that the world does not have."""
    return read_questions(question_file(WORLD, split), WORLD, split)


def load_evidence(split: str) -> dict[str, tuple[frozenset[str], ...]]:
    """Return by a question's key, for each fact that it needs, the ids of the passages of which any one says it.

    UserError for a split that the world does not have.
    """
    path = question_file(WORLD, split)
    return {
        f"{WORLD}:{row['id']}": tuple(map(frozenset, row["metadata"]["evidence"]))
        for _, row in read_rows(path)
        if not isinstance(row, BadRowError)
    }
