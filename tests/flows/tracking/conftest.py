"""A run that is done, which trackers are told of afterwards, and a place for what they keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.settings.root import Settings
from storage.storage import Storage
from tests.support.tracking import KEPT

QUICK = [
    "evaluation.num_questions=2",
    "data.questions_per_iteration=2",
    "model.torch_threads=1",
    "iterations=2",
    "rollout.max_new_tokens=20",
    "evaluation.modes=['greedy']",
]


def quick(*overrides: str) -> Settings:
    return load_settings("tiny", [*QUICK, *overrides])


class Heard(SilentReporter):
    """A reporter that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the run `first`, which was trained without a tracker."""
    folder = tmp_path_factory.mktemp("tracked")
    train_plain(quick(), "first", folder, SilentReporter())
    return folder


@pytest.fixture
def storage(folder: Path) -> Iterator[Storage]:
    """The workspace; what was kept of its run's trackers goes."""
    storage = open_storage(folder)
    yield storage
    (storage.workspace.run_folder("first") / "tracking.json").unlink(missing_ok=True)
    KEPT.clear()
