"""Settings that changed between run and resume are refused, unless a fork continues with them as a run of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.run.progress import SilentReporter
from flows.training.fork import fork_run
from flows.training.loop import train_plain
from schemas.records.ledger import RunRecord, StageKey
from storage.database.tables import table_schemas
from storage.disk.files import sha256_file
from storage.errors import DamagedArtifactError, RunLockedError
from storage.runs.lock import RunLock
from storage.storage import Storage
from storage.workspace import Workspace
from tests.crash.compare import Snapshot, differences, snapshot
from tests.faults.runs import RUN, quick, train
from tests.support.ledger import attempts_of

FORK = "fork"
CIRCUMSTANCES = {"run", "adopted_from", "started_at", "finished_at", "duration_s", "host", "pid", "attempt", "outputs"}


class StoppedError(Exception):
    """Stands for whatever ends a run."""


def stop_in_the_second_iteration(key: StageKey) -> None:
    if key.iteration == 2:
        raise StoppedError


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run that stands after its first update."""
    folder = tmp_path_factory.mktemp("master")
    with pytest.raises(StoppedError):
        train(folder, quick(), stop_in_the_second_iteration)
    return folder


@pytest.fixture
def stopped(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "workspace"))


def storage_of(workspace: Path) -> Storage:
    return Storage(Workspace.open(workspace))


def go_on(workspace: Path, run: str) -> RunRecord:
    train_plain(None, run, workspace, SilentReporter(), resume=True)
    return storage_of(workspace).ledger.get_run(run)


def rows(workspace: Path, table: str, run: str, iteration: int) -> list[dict[str, object]]:
    """Return an iteration's rows of a run, without what depends on the run's name, the time and the place."""
    found = storage_of(workspace).database.query(
        f'SELECT * FROM "{table}" WHERE run = $run AND iteration = $iteration', {"run": run, "iteration": iteration}
    )
    kept = [{k: v for k, v in row.items() if k not in (*CIRCUMSTANCES, "tensor_path")} for row in found.to_pylist()]
    return sorted((row for row in kept if row.get("status", "done") == "done"), key=repr)


def test_a_fork_with_the_same_settings_goes_on_as_its_source(stopped: Path, expected: Snapshot) -> None:
    fork_run(storage_of(stopped), RUN, FORK, quick())
    forked, source = go_on(stopped, FORK), go_on(stopped, RUN)
    assert (forked.source, forked.first_iteration, forked.policy_version, forked.status) == (RUN, 2, 2, "done")
    assert forked.policy_sha256 == source.policy_sha256
    checkpoints = storage_of(stopped).checkpoints
    for name in ("model.safetensors", "optimiser/state.safetensors"):
        found, wanted = (sha256_file(checkpoints.path(run, 2) / name) for run in (FORK, RUN))
        assert found == wanted, name
    tables = [name for name, schema in table_schemas().items() if {"run", "iteration"} <= set(schema.names)]
    assert "stages" in tables
    for table in tables:
        assert rows(stopped, table, FORK, 2) == rows(stopped, table, RUN, 2), table
    of_source = {name: value for name, value in snapshot(stopped).items() if f"run={RUN}/" in name}
    assert differences(of_source, {name: value for name, value in expected.items() if f"run={RUN}/" in name}) == []


def test_a_fork_takes_other_settings_and_needs_its_source_no_more(stopped: Path) -> None:
    storage = storage_of(stopped)
    fork_run(storage, RUN, FORK, quick("update.learning_rate=1e-3", "iterations=3"))
    storage.checkpoints.prune(RUN, keep=())
    forked = go_on(stopped, FORK)
    assert (forked.iterations_done, forked.status) == (3, "done")
    stages = [(s.iteration, s.stage) for s in attempts_of(storage.ledger, FORK) if s.adopted_from is None]
    assert min(iteration for iteration, stage in stages if stage != "evaluate") == 2, "nothing before is done again"
    assert (1, "evaluate") in stages, "its curve begins where it began"
    assert {row["learning_rate"] for row in rows(stopped, "update_metrics", FORK, 2)} == {1e-3}
    before = snapshot(stopped)
    assert run_command(["db", "rebuild", "--workspace", str(stopped)]) == 0
    assert differences(snapshot(stopped), before) == []


def test_the_command_refuses_changed_settings_and_forks(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toml = stopped / "mine.toml"
    settings = quick()
    changed = [f"--set=model.path={settings.model.path}", f"--set=data.questions={settings.data.questions}"]
    changed += [f"--set=retrieval.corpus={settings.retrieval.corpus}", "--set=model.torch_threads=1"]
    toml.write_text(
        'iterations = 2\n[rollout]\nmax_new_tokens = 8\ntemplate = "compact"\n[evaluation]\nnum_questions=1\n'
    )
    train_again = ["train", str(toml), *changed, "--set=data.questions_per_iteration=1", "--no-prefect", "--run", RUN]
    where = ["--workspace", str(stopped)]
    assert run_command([*train_again, *where]) == 2
    refusal = capsys.readouterr().err
    assert f"run '{RUN}' exists with other settings (" in refusal
    assert "rollout.group_size: 2 -> 5" in refusal
    assert "--fork NEW" in refusal
    assert run_command([*train_again, "--fork", FORK, *where]) == 0, capsys.readouterr().err
    assert run_command(["show", FORK, *where]) == 0
    assert f"fork of run '{RUN}' after 1 updates" in capsys.readouterr().out
    assert run_command([*train_again, "--fork", FORK, *where]) == 0, "a fork continues by the same command"
    assert run_command(["train", "tiny", "--fork", FORK, *where]) == 2
    assert "--fork fork needs the run that it continues: --run NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["iterations=1"], r"begins with iteration 2, but iterations is 1; set more iterations"),
        (["model.tuning=lora"], r"these settings must stay \(model\.tuning: full -> lora\); change them back"),
        (["model.path=mini"], r"model\.path: .*/model -> mini"),
    ],
)
def test_settings_that_cannot_go_on_from_there(overrides: list[str], reason: str, stopped: Path) -> None:
    with pytest.raises(UserError, match=reason):
        fork_run(storage_of(stopped), RUN, FORK, quick(*overrides))
    assert not (stopped / "artifacts" / f"run={FORK}").exists()


def test_names_and_runs_that_cannot_be_forked(stopped: Path) -> None:
    storage = storage_of(stopped)
    with pytest.raises(UserError, match="needs a name other than its source's"):
        fork_run(storage, RUN, RUN, quick())
    fork_run(storage, RUN, FORK, quick())
    with pytest.raises(UserError, match=r"exists with other settings \(seed: 0 -> 1\)"):
        fork_run(storage, RUN, FORK, quick("seed=1"))
    fork_run(storage, FORK, "second", quick("seed=1"))
    with pytest.raises(UserError, match=rf"is a fork of run '{RUN}' after 1 updates; choose another"):
        fork_run(storage, "second", FORK, quick())
    storage.update_run(storage.ledger.get_run(RUN).model_copy(update={"policy_version": 0}))
    with pytest.raises(UserError, match="has no update to continue from"):
        fork_run(storage, RUN, "third", quick())
    with RunLock(storage.workspace, "second"), pytest.raises(RunLockedError, match="held by process"):
        fork_run(storage, "second", "third", quick("seed=1"))


def test_damage_before_and_after_the_fork(stopped: Path) -> None:
    storage = storage_of(stopped)
    weights = storage.checkpoints.path(RUN, 1) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedArtifactError, match=r"model\.safetensors is damaged"):
        fork_run(storage, RUN, FORK, quick())
    go_on(stopped, RUN)
    fork_run(storage, RUN, FORK, quick("iterations=3"))
    storage.checkpoints.prune(FORK, keep=())
    with pytest.raises(DamagedArtifactError, match=rf"no intact checkpoint, not even of version 2,.* run '{RUN}'"):
        go_on(stopped, FORK)
