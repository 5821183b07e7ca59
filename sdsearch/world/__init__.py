"""The embedded world: a corpus of real facts and questions about it, read as any other data set."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final, Literal, get_args

from schemas.errors import UserError
from schemas.passage import Passage
from schemas.question import Question
from sdsearch.readers import read_passages, read_questions

DATASET: Final = "world"
Split = Literal["train", "dev", "test"]


def corpus_file() -> Traversable:
    """Return the embedded corpus file, in Search-R1's form."""
    return files(__name__) / "data" / "passages.jsonl"


def load_passages() -> list[Passage]:
    """Return the embedded corpus, in the order of its ids."""
    return list(read_passages(corpus_file()))


def load_questions(split: str) -> list[Question]:
    """Return the questions of a split; splits share no country and no element.

    Raises ValueError for a split that the world does not have.
    """
    if split not in get_args(Split):
        raise UserError(f"the embedded world has no split '{split}'; choose one of {', '.join(get_args(Split))}")
    return list(read_questions(files(__name__) / "data" / f"questions_{split}.jsonl", DATASET, split))
