"""Where questions come from, which data sets are trained on and tested, and what reading one of them gave."""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple

from pydantic import AfterValidator, Field

from schemas.base import Positive, Section
from schemas.names import NAME_RULE, Name, is_name
from schemas.plugins import Names, Options

WORLD: Final = "world"
HUB: Final = "hub:"


class SetName(NamedTuple):
    """A data set and one of its splits."""

    dataset: str
    split: str

    def __str__(self) -> str:
        return f"{self.dataset}:{self.split}"


def set_name(text: str, default_split: str) -> SetName:
    """Return what 'name' or 'name:split' names."""
    dataset, colon, split = text.partition(":")
    return SetName(dataset, split if colon else default_split)


def is_set_text(text: str) -> bool:
    """True for 'name' and 'name:split'."""
    return all(is_name(part) for part in set_name(text, "test"))


def _check(text: str) -> str:
    if not is_set_text(text):
        raise ValueError(f"{text[:100]!r} is no 'name' or 'name:split' of a data set: {NAME_RULE}")
    return text


SetText = Annotated[str, AfterValidator(_check)]


class DataSettings(Section):
    """Questions: where they lie, what is trained on, what is tested."""

    questions: str = Field(
        default=WORLD,
        description="'world' is the embedded data set; or files with {dataset} and {split} in their name: jsonl, "
        "jsonl.gz or parquet with FlashRAG's or Search-R1's columns; or 'hub:NAME', a data set of the hub such as "
        "hub:RUC-NLPIR/FlashRAG_datasets, or a folder that `datasets` opens.",
    )
    reader: Annotated[str, Names("reader")] = Field(
        default="standard", description="How these files are read: as above, or a plugin for rows of your own form."
    )
    reader_options: Options = Field(default={}, description="The settings of a plugin's reader.")
    sets: dict[Name, str] = Field(
        default={}, description="Data sets that lie elsewhere: name = 'place', written as in `questions`."
    )
    dataset: Name = Field(
        default=WORLD,
        description="The data set that a run is evaluated on, and trained on where `train` is empty; its name is part "
        "of a question's key.",
    )
    train_split: Name = Field(default="train", description="Split that rollouts are sampled on.")
    train: tuple[SetText, ...] = Field(
        default=(), description="Data sets that are trained on together, 'name' or 'name:split' (train_split)."
    )
    test: tuple[SetText, ...] = Field(
        default=(),
        description="Data sets that `sdsearch evaluate --datasets all` answers, 'name' or 'name:split' (test). Empty: "
        "`dataset`, split evaluation.split.",
    )
    question_mark: bool = Field(
        default=True,
        description="Strip blanks around a question, and add a '?' at its end where there is none (relative).",
    )
    max_dropped_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="Rows that may be bad and are left out, of a data set's; where more are, reading stops with the "
        "first one.",
    )
    questions_per_iteration: Positive = Field(default=256, description="Groups an iteration (closest public relative).")
    shuffle_seed: int = Field(default=0, description="Seed of the epoch's order; no question repeats within an epoch.")

    @property
    def training_sets(self) -> tuple[SetName, ...]:
        """The data sets that rollouts are sampled on."""
        return tuple(set_name(text, self.train_split) for text in self.train or (self.dataset,))

    def test_sets(self, evaluation_split: str) -> tuple[SetName, ...]:
        """The data sets that an evaluation of all answers."""
        return tuple(set_name(text, "test") for text in self.test) or (SetName(self.dataset, evaluation_split),)

    def location_of(self, dataset: str) -> str:
        """Where a data set lies, as the settings write it."""
        return self.sets.get(dataset, self.questions)
