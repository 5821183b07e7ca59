"""A run that stores its optimiser with some versions alone: resumed anywhere, it ends with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.fork import fork_run
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.errors import UserError
from schemas.records.ledger import StageKey
from schemas.settings.root import Settings

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


class Stops(SilentReporter):
    """Ends the process's work, as Ctrl-C does, after an iteration."""

    def __init__(self, after: int) -> None:
        self._after = after

    def iteration_done(self, iteration: int, numbers: dict[str, float]) -> None:
        if iteration == self._after:
            raise KeyboardInterrupt


def settings(every: int) -> Settings:
    small = ["data.questions_per_iteration=2", "evaluation.num_questions=1", "model.torch_threads=1"]
    return load_settings("tiny", [*small, "iterations=5", f"storage.optimiser_every={every}"])


def test_updates_between_are_taken_again_with_the_same_bits(tmp_path: Path) -> None:
    train_plain(settings(1), "all", tmp_path, SilentReporter())
    with pytest.raises(KeyboardInterrupt):
        train_plain(settings(3), "some", tmp_path, Stops(after=2))
    storage = open_storage(tmp_path)
    assert not any(storage.checkpoints.has_optimiser("some", version) for version in (1, 2))
    with pytest.raises(UserError, match=r"version 2 of run 'some' was stored without its optimiser"):
        fork_run(storage, "some", "fork", settings(1).model_copy(update={"seed": 1}))
    with pytest.raises(KeyboardInterrupt):
        train_plain(None, "some", tmp_path, Stops(after=4), resume=True)
    assert storage.checkpoints.has_optimiser("some", 3)
    assert not storage.checkpoints.has_optimiser("some", 4)
    train_plain(None, "some", tmp_path, SilentReporter(), resume=True)
    runs = [storage.ledger.get_run(run) for run in ("all", "some")]
    assert runs[0].policy_sha256 == runs[1].policy_sha256
    assert [storage.checkpoints.has_optimiser("some", version) for version in (3, 4, 5)] == [True, False, True]
    tried = {
        iteration: len(storage.ledger.history(StageKey(run="some", iteration=iteration, stage="update")).attempts)
        for iteration in range(1, 6)
    }
    assert tried == {1: 2, 2: 2, 3: 1, 4: 2, 5: 1}, "what follows a stored optimiser is taken again, and nothing else"
    sampled = StageKey(run="some", iteration=2, stage="sample")
    assert len(storage.ledger.history(sampled).attempts) == 1, "nothing is sampled again"
