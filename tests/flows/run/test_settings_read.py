"""Each stage reads the settings that it declares and no others: a run tells, over settings that keep what is read."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel

from flows.evaluation.stage import EVALUATE
from flows.run.perform import Attempt, StageRunner
from flows.run.progress import SilentReporter
from flows.run.stage_inputs import StageKind
from flows.settings.load import load_settings
from flows.training.job import Job, open_storage
from flows.training.loop import drive
from flows.training.stages.hindsight import HINDSIGHT
from flows.training.stages.sample import SAMPLE
from flows.training.stages.score import SCORE
from flows.training.stages.teacher import TEACHER
from flows.training.stages.update import UPDATE
from schemas.settings.root import Settings

KINDS = (SAMPLE, SCORE, HINDSIGHT, TEACHER, UPDATE, EVALUATE)
_BEFORE = "before"
EXPLAINED: dict[str, dict[str, str]] = {
    "score": dict.fromkeys(
        ("rollout.retries", "rollout.retries_use"), "what retries are for is an input of its own, where there are any"
    ),
    "teacher": dict.fromkeys(
        (
            "rollout.retries",
            "rollout.retries_use",
            "iterations",
            "distillation.enabled",
            "distillation.warmup_iterations",
            "distillation.alpha",
            "distillation.strength.kind",
            "distillation.schedule.kind",
        ),
        "whether there is a teacher is an input of its own",
    ),
    "evaluate": dict.fromkeys(
        ("retrieval.kind", "retrieval.corpus", "retrieval.encoder.kind", "retrieval.index.kind"),
        "they name what is searched, whose fingerprint is an input of its own",
    ),
    "update": {"storage.optimiser_every": "which versions are stored with their optimiser moves no weights"},
}
"""What a stage reads that it does not declare, and why its work does not depend on it otherwise."""


class Recorder:
    """Stands for a section of the settings, and hands the full name of each setting that is read to `keep`."""

    def __init__(self, section: BaseModel, keep: Callable[[str], None], prefix: str = "") -> None:
        self._section, self._keep, self._prefix = section, keep, prefix

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(self._section)

    def __getattr__(self, name: str) -> Any:
        section = self._section
        if name in type(section).model_fields:
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                return Recorder(value, self._keep, f"{self._prefix}{name}.")
            self._keep(f"{self._prefix}{name}")
            return value
        attribute = inspect.getattr_static(type(section), name)
        if isinstance(attribute, property) and attribute.fget is not None:
            return attribute.fget(self)
        if inspect.isfunction(attribute) and attribute.__module__.startswith("schemas.settings"):
            return partial(attribute, self)
        return getattr(section, name)


SMALL = ["model.torch_threads=1", "data.questions_per_iteration=2", "evaluation.num_questions=2"]
# The second run reads what acts only beside other settings.
RUNS = (["iterations=2"], ["iterations=1", "distillation.teacher=ema", "distillation.warmup_iterations=0"])


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The settings that each stage read while it worked, and what was read between the stages, over all runs."""
    found: dict[str, set[str]] = defaultdict(set)
    for overrides in RUNS:
        record(found, load_settings("tiny", [*SMALL, *overrides]), tmp_path_factory.mktemp("read"))
    return found


def record(found: dict[str, set[str]], settings: Settings, workspace: Path) -> None:
    """Add to `found`, by the stage's name, the settings that a run reads."""
    working = [_BEFORE]
    attempt = StageRunner.attempt

    @contextmanager
    def attempted(runner: StageRunner, stage: StageKind, *arguments: Any) -> Iterator[Attempt]:
        with attempt(runner, stage, *arguments) as opened:
            working[0] = stage.name
            yield opened
            working[0] = _BEFORE

    recorded = cast(Settings, Recorder(settings, lambda name: found[working[0]].add(name)))
    storage = open_storage(workspace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRunner, "attempt", attempted)
        drive(Job("first", storage, recorded), SilentReporter())


def covers(declared: str, name: str) -> bool:
    return name == declared or name.startswith(f"{declared}.")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_stage_reads_what_it_declares(kind: StageKind, read: dict[str, set[str]]) -> None:
    allowed = (*kind.reads, *EXPLAINED.get(kind.name, {}))
    assert {name for name in read[kind.name] if not any(covers(each, name) for each in allowed)} == set()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_a_stage_declares_is_read(kind: StageKind, read: dict[str, set[str]]) -> None:
    """By the stage, or by its live objects, which are made before the first stage."""
    names = read[kind.name] | read[_BEFORE]
    assert {each for each in kind.reads if not any(covers(each, name) for name in names)} == set()
