"""A stage is done again when the code that does it changes, with a line that says why; a done iteration stays."""

from __future__ import annotations

import ast
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import flows.run.sources
from flows.evaluation.stage import EVALUATE
from flows.run.live import Runtime
from flows.run.perform import StageRunner
from flows.run.progress import SilentReporter
from flows.run.sources import sources_of
from flows.run.stage_inputs import StageKind, stage_sources
from flows.settings.load import load_settings
from flows.training.stages.hindsight import HINDSIGHT
from flows.training.stages.sample import SAMPLE
from flows.training.stages.score import SCORE
from flows.training.stages.teacher import TEACHER
from flows.training.stages.update import UPDATE
from schemas.records.ledger import StageRecord
from schemas.records.rollout import Group
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.records import make_groups, make_run

ROOT = Path(flows.__file__).parents[1]
KINDS = (SAMPLE, SCORE, HINDSIGHT, TEACHER, UPDATE, EVALUATE)
SCORING = "sdsearch/credit/scoring.py"
KIND = StageKind("sample", reads=("seed",), code=("sdsearch.credit.scoring",))


class Live:
    """What a stage runner needs of a run's live objects; keeps what people are told."""

    def __init__(self, storage: Storage, source: str | None = None, run: str = "first") -> None:
        self.settings, self.run, self.source, self.storage = load_settings("tiny"), run, source, storage
        self.reporter = SilentReporter()
        self.told: dict[str, str] = {}

    def note_once(self, subject: str, sentence: str) -> None:
        self.told.setdefault(subject, sentence)

    def take_reports(self, *, searching: bool) -> dict[str, None]:
        return {}

    def abandon(self) -> None: ...


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(Workspace.open(tmp_path))
    for run in ("first", "second"):
        settings = load_settings("tiny").model_dump_json()
        storage.create_run(make_run(run).model_copy(update={"settings_json": settings}))
    return storage


def perform(live: Live, iteration: int = 1, num_done: int = -1, upstream: str = "a") -> tuple[bool, StageRecord]:
    """Perform a stage that writes groups; return whether its work was needed."""
    runner = StageRunner(live, num_done=num_done)  # type: ignore[arg-type]
    with runner.attempt(KIND, iteration, [upstream]) as attempt:
        if attempt.needed:
            attempt.write("groups", Group, make_groups())
    return attempt.needed, attempt.record


def change(monkeypatch: pytest.MonkeyPatch, path: str = SCORING) -> None:
    """Let a source be another one."""
    real = flows.run.sources._source

    def changed(module: str) -> Any:
        source = real(module)
        return source and (source[0], "0" * 64 if source[0] == path else source[1], source[2])

    monkeypatch.setattr(flows.run.sources, "_source", changed)


def test_a_stage_whose_code_changed_runs_again_and_says_why(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(storage)
    assert perform(live)[0]
    assert not perform(live)[0]
    assert live.told == {}
    change(monkeypatch)
    needed, record = perform(live)
    assert (needed, record.attempt) == (True, 2)
    assert live.told == {"again sample": f"sample runs again from iteration 1: {SCORING} changed since"}
    assert not perform(Live(storage))[0], "done by the code as it is now"


def test_code_that_the_stage_does_not_reach_changes_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    perform(live := Live(storage))
    change(monkeypatch, "sdsearch/training/loss.py")
    assert not perform(live)[0]


def test_a_done_iteration_stays_as_it_is(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    _, former = perform(live := Live(storage))
    change(monkeypatch)
    needed, record = perform(live, num_done=1)
    assert (needed, record, live.told) == (False, former, {})
    assert perform(live, num_done=1, upstream="b")[0], "other inputs are other work, whenever it was done"
    assert perform(live, iteration=2, num_done=1)[0]


def test_a_damaged_file_of_a_done_iteration_is_made_by_the_present_code(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, former = perform(live := Live(storage))
    storage.artifacts.path(former.outputs[0]).unlink()
    change(monkeypatch)
    needed, record = perform(live, num_done=1)
    assert needed
    assert record.code_hash != former.code_hash
    assert live.told == {"again sample": f"sample runs again from iteration 1: {SCORING} changed since"}


@pytest.mark.parametrize("is_changed", [False, True], ids=["the same code", "other code"])
def test_finished_parts_serve_the_same_code_alone(
    is_changed: bool, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = StageRunner(live := Live(storage))  # type: ignore[arg-type]
    with suppress(KeyboardInterrupt), runner.attempt(KIND, 1, ["a"]) as attempt:
        attempt.keep_partial("part", Group, make_groups())
        raise KeyboardInterrupt
    if is_changed:
        change(monkeypatch)
    with runner.attempt(KIND, 1, ["a"]) as attempt:
        assert (attempt.find_partial("part", Group) is None) == is_changed
    assert bool(live.told) == is_changed


def test_a_replay_takes_over_what_the_same_code_did(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    perform(Live(storage))
    needed, record = perform(Live(storage, source="first", run="second"))
    assert (needed, record.adopted_from) == (False, "first")
    change(monkeypatch)
    perform(Live(storage), iteration=2)
    monkeypatch.undo()
    live = Live(storage, source="first", run="second")
    assert perform(live, iteration=2)[0]
    assert live.told == {"again sample": f"sample is computed from iteration 2: {SCORING} changed since"}


def test_work_of_earlier_programs_stays_in_done_iterations_alone(storage: Storage) -> None:
    _, record = perform(live := Live(storage))
    storage.ledger.commit(record.model_copy(update={"code_hash": "", "input_hash": "f" * 64}))
    assert not perform(live, num_done=1)[0]
    assert perform(live, num_done=0)[0]
    assert live.told == {"again sample": "sample runs again from iteration 1: another version of the program did it"}


def test_a_plugin_s_source_counts_under_the_setting_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_reward.py").write_text(
        '"""Own."""\n\n\ndef nothing(rollout, golden_answers, scores):\n    """Nothing."""\n    return 0.0\n'
    )
    settings = load_settings("tiny", ["reward.name=own_reward:nothing"])
    own = [path for path in stage_sources(settings, SCORE) if path.startswith("reward.name: ")]
    assert own
    assert all(path.endswith("own_reward.py") for path in own)
    assert not [path for path in stage_sources(settings, TEACHER) if path.startswith("reward.name")]
    assert "sdsearch/credit/rewards.py" in stage_sources(load_settings("tiny"), SCORE)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_sources_are_those_that_the_imports_lead_to(kind: StageKind) -> None:
    assert set(sources_of(kind.code)) == closure(kind.code)


def test_the_six_stages_do_not_share_all_their_code() -> None:
    teacher, update = (set(sources_of(kind.code)) for kind in (TEACHER, UPDATE))
    assert "sdsearch/credit/divergence.py" in teacher & update
    assert "sdsearch/training/update.py" in update - teacher
    assert "sdsearch/sampling/rollouts.py" in set(sources_of(SAMPLE.code)) - teacher - update
    assert SCORING not in teacher | update


def test_all_sources_are_hashed_in_moments() -> None:
    flows.run.sources._source.cache_clear()
    started = time.process_time()
    for kind in KINDS:
        sources_of(kind.code)
    assert time.process_time() - started < 0.2, "measured: 0.02 s"
    started = time.process_time()
    for kind in KINDS:
        sources_of(kind.code)
    assert time.process_time() - started < 0.02


def closure(modules: tuple[str, ...]) -> set[str]:
    """The same by the syntax tree."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        parts = ROOT.joinpath(*waiting.pop().split("."))
        file = next((path for path in (parts.with_suffix(".py"), parts / "__init__.py") if path.is_file()), None)
        if file is None or (name := file.relative_to(ROOT).as_posix()) in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            waiting += [name for name in names if f"{name}.".startswith(("sdsearch.", "schemas.records."))]
    return found


def test_the_fake_has_what_live_objects_have() -> None:
    assert all(hasattr(Runtime, name) for name in ("note_once", "take_reports", "abandon"))
