"""Which checkpoints stay: the newest, the best on dev, and what a run that was killed goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.settings.load import load_settings
from flows.training.checkpoints import first_iteration, retain_checkpoints
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import StageKey
from storage.runs.ledger import finish
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_evaluation, make_run

SETTINGS = load_settings("tiny", ["storage.keep_checkpoints=2"])


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """A run with versions 1 to 6 and no evaluation."""
    storage = Storage(Workspace.open(tmp_path))
    storage.create_run(make_run())
    for version in range(1, 7):
        storage.checkpoints.write("first", version, lambda folder: _write(folder / "weights"))
    return storage


def _write(path: Path) -> None:
    path.write_text("1")


def evaluate(storage: Storage, version: int, em: float, mode: str = "greedy", further: bool = False) -> Path:
    changes = {"policy_version": version, "em": em, "mode": mode, "further": further}
    report = make_evaluation()[0].model_copy(update=changes)
    key = StageKey(run="first", iteration=version, stage="evaluate")
    file = storage.artifacts.write_records(key, "reports", EvaluationReport, [report])
    storage.ledger.commit(finish(storage.ledger.begin(key, "inputs", 1), [file]))
    return storage.artifacts.path(file)


def retained(storage: Storage, iteration: int = 6) -> list[int]:
    retain_checkpoints(storage, SETTINGS, "first", iteration)
    return storage.checkpoints.versions("first")


def test_the_newest_stay(storage: Storage) -> None:
    assert retained(storage) == [5, 6]
    assert [path.name for path in storage.workspace.checkpoints("first").iterdir() if path.name.startswith(".")] == []


def test_those_of_the_evaluations_stay_where_it_is_wanted(storage: Storage) -> None:
    settings = load_settings("tiny", ["storage.keep_checkpoints=2", "storage.keep_evaluated=true", "iterations=9"])
    assert settings.evaluation.every == 2
    retain_checkpoints(storage, settings, "first", 6)
    assert storage.checkpoints.versions("first") == [2, 4, 5, 6]
    assert [n for n in range(10) if settings.evaluates_after(n)] == [0, 2, 4, 6, 8, 9]


def test_the_best_on_dev_stays_the_earliest_of_equals_and_greedy_before_sampled(storage: Storage) -> None:
    for version, em in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4)):
        evaluate(storage, version, em)
    evaluate(storage, 5, 0.9, "sampled")
    assert retained(storage) == [2, 5, 6]


def test_further_sets_do_not_say_which_is_the_best(storage: Storage) -> None:
    evaluate(storage, 1, 0.2)
    evaluate(storage, 3, 0.9, further=True)
    assert retained(storage) == [1, 5, 6]


def test_a_version_whose_evaluation_cannot_be_read_stays(storage: Storage) -> None:
    evaluate(storage, 1, 0.9)
    evaluate(storage, 3, 0.1).write_bytes(b"damaged")
    assert retained(storage) == [1, 3, 5, 6]


def test_versions_that_are_newer_than_the_iteration_that_is_walked_again_stay(storage: Storage) -> None:
    assert retained(storage, iteration=4) == [3, 4, 5, 6]


@pytest.mark.parametrize(("lost", "first"), [((), 6), ((6,), 6), ((5, 6), 5), ((5,), 6), ((1, 2, 3, 4, 5, 6), 1)])
def test_a_run_goes_on_after_its_newest_intact_checkpoint(storage: Storage, lost: tuple[int, ...], first: int) -> None:
    record = make_run().model_copy(update={"iterations_done": 6, "policy_version": 6})
    for version in lost:
        path = storage.checkpoints.path("first", version)
        (path / "weights").write_text("2") if version % 2 else shutil.rmtree(path)
    assert first_iteration(storage, SETTINGS, record) == first


def test_a_run_that_has_not_got_far_begins_at_its_first_iteration(storage: Storage) -> None:
    assert [
        first_iteration(storage, SETTINGS, make_run().model_copy(update={"iterations_done": n})) for n in (0, 1)
    ] == [1, 1]


SPARSE = load_settings("tiny", ["storage.keep_checkpoints=2", "storage.optimiser_every=4", "iterations=7"])


def store_optimiser(storage: Storage, *versions: int) -> None:
    for version in versions:
        storage.checkpoints.write("first", version, _write_both)


def _write_both(folder: Path) -> None:
    _write(folder / "weights")
    (folder / "optimiser").mkdir()
    _write(folder / "optimiser" / "state.safetensors")


def test_the_optimiser_is_stored_with_every_nth_version_and_the_last() -> None:
    assert [version for version in range(1, 8) if SPARSE.stores_optimiser(version)] == [4, 7]
    assert all(SETTINGS.stores_optimiser(version) for version in range(1, 8))


def test_the_newest_version_with_its_optimiser_stays(storage: Storage) -> None:
    store_optimiser(storage, 2, 3)
    retain_checkpoints(storage, SPARSE, "first", 6)
    assert storage.checkpoints.versions("first") == [3, 5, 6]


def test_a_run_goes_on_from_the_newest_optimiser_and_makes_the_versions_after_it_again(storage: Storage) -> None:
    store_optimiser(storage, 2, 4)
    record = make_run().model_copy(update={"iterations_done": 6})
    assert first_iteration(storage, SPARSE, record) == 5
    assert storage.checkpoints.versions("first") == [1, 2, 3, 4], "the updates of 5 and 6 are taken again"


def test_a_run_that_is_done_needs_no_optimiser_and_keeps_its_versions(storage: Storage) -> None:
    done = SPARSE.model_copy(update={"iterations": 6})
    record = make_run().model_copy(update={"iterations_done": 6})
    assert first_iteration(storage, done, record) == 6
    assert storage.checkpoints.versions("first") == [1, 2, 3, 4, 5, 6]


def test_without_an_optimiser_all_updates_are_taken_again(storage: Storage) -> None:
    record = make_run().model_copy(update={"iterations_done": 6})
    assert first_iteration(storage, SPARSE, record) == 1
    assert storage.checkpoints.versions("first") == []
