"""A finished run that is small: two groups of four an iteration, each an optimiser step of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain

SETTINGS = (
    "data.questions_per_iteration=2",
    "update.rollouts_per_step=4",
    "evaluation.num_questions=4",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds `workspace` with the run `first`; nobody changes it."""
    parent = tmp_path_factory.mktemp("notebook")
    train_plain(load_settings("tiny", SETTINGS), "first", parent / "workspace", SilentReporter())
    return parent
