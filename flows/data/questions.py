"""The questions that settings name: read once a process, the same way for runs, evaluations and `data prepare`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from schemas.records.question import Question
from schemas.settings.data import WORLD, DataSettings, SetName
from sdsearch.data.curriculum import Curriculum
from sdsearch.data.file_readers import open_reader
from sdsearch.data.questions import DatasetRows, LoadedSet, ReadingRules, collect, leave_out, rows_at
from sdsearch.data.readers import BadRowError, DataError, read_rows
from sdsearch.world import question_file

FindUnfit = Callable[[Sequence[Question]], Mapping[str, BadRowError]]
"""Returns what is wrong with the questions of which no prompt can be made, by their keys."""


class Questions:
    """The data sets of the settings; each split is read when it is first asked for.

    `find_unfit` tells which questions make no prompt: they are left out or refused by the same rule as bad rows.
    """

    def __init__(self, settings: DataSettings, find_unfit: FindUnfit | None = None) -> None:
        self._settings = settings
        self._find_unfit = find_unfit
        self._read: dict[SetName, LoadedSet] = {}
        self._loaded: dict[SetName, LoadedSet] = {}

    def read(self, name: SetName) -> LoadedSet:
        """Return what a data set's split holds, whether prompts can be made of it or not; errors as of `load`."""
        if name not in self._read:
            location = self._settings.location_of(name.dataset)
            self._read[name] = collect(self.rows(name), location, name, self._rules)
        return self._read[name]

    def rows(self, name: SetName) -> DatasetRows:
        """Return the rows of a data set's split, unchecked; DataError or UserError when they are taken."""
        location = self._settings.location_of(name.dataset)
        if location == WORLD:
            return read_rows(question_file(name.dataset, name.split))
        return rows_at(location, name, open_reader(self._settings))

    def load(self, name: SetName) -> LoadedSet:
        """Return a data set's split with what was left out of it; DataError or UserError when it cannot be used."""
        if name not in self._loaded:
            loaded = self.read(name)
            unfit = self._find_unfit(loaded.questions) if self._find_unfit else {}
            self._loaded[name] = leave_out(loaded, unfit, self._rules)
        return self._loaded[name]

    def of(self, name: SetName) -> list[Question]:
        """Return the questions of a data set's split; errors as of `load`."""
        return self.load(name).questions

    def read_all(self, evaluated: Sequence[SetName]) -> tuple[int, int]:
        """Return how many questions there are to train and to evaluate on; errors as of `load` and `curriculum`."""
        training = self._mix(self.read)
        Curriculum(training, self._settings.questions_per_iteration, self._settings.shuffle_seed)
        return len(training), sum(len(self.read(name).questions) for name in evaluated)

    @cached_property
    def training(self) -> list[Question]:
        """The training mix, set after set; DataError when two sets are the same questions or share a key."""
        return self._mix(self.load)

    @property
    def _rules(self) -> ReadingRules:
        return ReadingRules(self._settings.question_mark, self._settings.max_dropped_share)

    def _mix(self, load: Callable[[SetName], LoadedSet]) -> list[Question]:
        loaded = [load(name) for name in self._settings.training_sets]
        known: dict[str, str] = {}
        for _, report in loaded:
            name = f"{report.dataset}:{report.split}"
            if (other := known.setdefault(report.questions_sha256, name)) != name:
                raise DataError(
                    f"data.train: {other} and {name} are the same questions, read from {report.location}; put "
                    "{dataset} into the location, or say in data.sets where each lies"
                )
        questions = [question for questions, _ in loaded for question in questions]
        keys = {question.key for question in questions}
        if len(keys) < len(questions):
            raise DataError(
                f"data.train: {len(questions) - len(keys)} question ids are in two splits of the same data set; train "
                "on one of the splits, or give the rows ids of their own"
            )
        return questions

    @cached_property
    def curriculum(self) -> Curriculum:
        """What each iteration trains on; UserError when an iteration wants more questions than there are."""
        return Curriculum(self.training, self._settings.questions_per_iteration, self._settings.shuffle_seed)
