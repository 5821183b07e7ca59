"""Which checkpoints stay: the newest, the best on dev, and what a run that was killed goes on from."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.settings.load import load_settings
from flows.training.loop import first_iteration, retain_checkpoints
from schemas.records.evaluation import EvaluationReport
from schemas.records.ledger import StageKey
from storage.runs.ledger import finish
from storage.stores import Stores
from storage.workspace import Workspace
from tests.support.records import make_evaluation, make_run

SETTINGS = load_settings("tiny", ["storage.keep_checkpoints=2"])


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    """A run with versions 1 to 6 and no evaluation."""
    stores = Stores(Workspace.open(tmp_path))
    stores.create_run(make_run())
    for version in range(1, 7):
        stores.checkpoints.write("first", version, lambda folder: _write(folder / "weights"))
    return stores


def _write(path: Path) -> None:
    path.write_text("1")


def evaluate(stores: Stores, version: int, em: float, mode: str = "greedy") -> Path:
    report = make_evaluation()[0].model_copy(update={"policy_version": version, "em": em, "mode": mode})
    key = StageKey(run="first", iteration=version, stage="evaluate")
    file = stores.artifacts.write_records(key, "reports", EvaluationReport, [report])
    stores.ledger.commit(finish(stores.ledger.begin(key, "inputs", 1), [file]))
    return stores.artifacts.path(file)


def retained(stores: Stores, iteration: int = 6) -> list[int]:
    retain_checkpoints(stores, SETTINGS, "first", iteration)
    return stores.checkpoints.versions("first")


def test_the_newest_stay(stores: Stores) -> None:
    assert retained(stores) == [5, 6]
    assert [path.name for path in stores.workspace.checkpoints("first").iterdir() if path.name.startswith(".")] == []


def test_the_best_on_dev_stays_the_earliest_of_equals_and_greedy_before_sampled(stores: Stores) -> None:
    for version, em in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.4)):
        evaluate(stores, version, em)
    evaluate(stores, 5, 0.9, "sampled")
    assert retained(stores) == [2, 5, 6]


def test_a_version_whose_evaluation_cannot_be_read_stays(stores: Stores) -> None:
    evaluate(stores, 1, 0.9)
    evaluate(stores, 3, 0.1).write_bytes(b"damaged")
    assert retained(stores) == [1, 3, 5, 6]


def test_versions_that_are_newer_than_the_iteration_that_is_walked_again_stay(stores: Stores) -> None:
    assert retained(stores, iteration=4) == [3, 4, 5, 6]


@pytest.mark.parametrize(("lost", "first"), [((), 6), ((6,), 6), ((5, 6), 5), ((5,), 6), ((1, 2, 3, 4, 5, 6), 1)])
def test_a_run_goes_on_after_its_newest_intact_checkpoint(stores: Stores, lost: tuple[int, ...], first: int) -> None:
    record = make_run().model_copy(update={"iterations_done": 6, "policy_version": 6})
    for version in lost:
        path = stores.checkpoints.path("first", version)
        (path / "weights").write_text("2") if version % 2 else shutil.rmtree(path)
    assert first_iteration(stores, record) == first


def test_a_run_that_has_not_got_far_begins_at_its_first_iteration(stores: Stores) -> None:
    assert [first_iteration(stores, make_run().model_copy(update={"iterations_done": n})) for n in (0, 1)] == [1, 1]
