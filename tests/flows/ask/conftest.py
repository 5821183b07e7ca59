"""A finished run that is small: one iteration, and one question that is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain

SETTINGS = (
    "iterations=1",
    "data.questions_per_iteration=2",
    "distillation.warmup_iterations=0",
    "evaluation.num_questions=1",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the run `first`."""
    folder = tmp_path_factory.mktemp("ask") / "workspace"
    train_plain(load_settings("tiny", SETTINGS), "first", folder, SilentReporter())
    return folder
