"""`sdsearch warmup`: it trains on demonstrations, goes on with the same bits, and its policy can be trained on."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch

import flows.warmup.work
from flows.app import run_command
from flows.settings.model_folder import local_folder
from flows.training.job import open_storage
from flows.warmup.correct import Shown, correct_rollouts
from schemas.records.warmup import WarmupRecord
from schemas.settings.root import Settings
from schemas.settings.warmup import WarmupSettings
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.prompting import render_frame
from sdsearch.training.supervised import Layout, take_step
from storage.runs.warmups import WarmupStore
from storage.workspace import Workspace
from tests.flows.warmup.test_sources import write_export

QUICK = [
    "evaluation.num_questions=4",
    "warmup.steps=6",
    "warmup.checkpoint_every=2",
    "warmup.tokens_per_batch=1200",
    "model.torch_threads=1",
    "data.questions_per_iteration=2",
    "iterations=1",
]


def warm(folder: Path, name: str, *more: str) -> int:
    words = [word for setting in (*QUICK, *more) for word in ("--set", setting)]
    return run_command(["warmup", "tiny", "--name", name, "--workspace", str(folder / "ws"), "--no-prefect", *words])


def record_of(folder: Path, name: str) -> WarmupRecord:
    found = WarmupStore(Workspace(folder / "ws"), name).find()
    assert found is not None
    return found


def weights_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(load_model(folder / "ws" / "warmups" / name / "policy", "float32").state_dict())


@contextmanager
def interrupted_at(number: int) -> Iterator[None]:
    """Have Ctrl-C come as the step of this number begins."""
    taken: list[int] = []

    def stops(*arguments: object) -> float:
        taken.append(1)
        if len(taken) == number:
            raise KeyboardInterrupt
        return take_step(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.warmup.work, "take_step", stops)
        yield


@pytest.mark.long
def test_a_stopped_warm_up_goes_on_with_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warm(tmp_path, "whole") == 0
    with interrupted_at(4):
        assert warm(tmp_path, "stopped") == 130
    assert "continue with: sdsearch warmup tiny --name stopped" in capsys.readouterr().out
    half = record_of(tmp_path, "stopped")
    assert (half.status, half.steps_done, len(half.losses), half.after) == ("training", 2, 2, None)
    assert warm(tmp_path, "stopped") == 0
    whole, stopped = record_of(tmp_path, "whole"), record_of(tmp_path, "stopped")
    assert (whole.status, whole.steps_done, len(whole.losses)) == ("done", 6, 6)
    assert stopped.losses == whole.losses
    assert stopped.num_tokens == whole.num_tokens
    first, second = weights_of(tmp_path, "whole"), weights_of(tmp_path, "stopped")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], start) for name, start in load_start().items())
    assert not list((tmp_path / "ws" / "warmups" / "whole" / "checkpoints").rglob("version=*")), "the policy is written"
    assert whole.before is not None
    assert whole.after is not None
    rows = open_storage(tmp_path / "ws").database.query("SELECT run, em FROM evaluations ORDER BY run").to_pylist()
    assert {row["run"]: row["em"] for row in rows}["whole-after"] == whole.after.em
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows.warmup.work, "take_step", _never)
        assert warm(tmp_path, "whole") == 0, "nothing is left to do"


def load_start() -> dict[str, torch.Tensor]:
    return dict(load_model(local_folder("mini"), "float32").state_dict())


def shown_by(folder: Path, demonstrations: str) -> list[Shown]:
    """What a run, or its export, shows in the words of the mini policy."""
    tokenizer = load_tokenizer(local_folder("mini"))
    layout = Layout(tokenizer, TAG_PROTOCOL, render_frame(tokenizer, "compact"), 160, 400)
    return correct_rollouts(WarmupSettings(demonstrations=demonstrations), open_storage(folder / "ws"), layout)


@pytest.mark.long
def test_demonstrations_that_changed_end_a_warm_up_that_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = write_export(tmp_path / "export")
    with interrupted_at(4):
        assert warm(tmp_path, "shown", f"warmup.demonstrations={export}") == 130
    assert record_of(tmp_path, "shown").demonstrations_sha256
    file = export / "conversations.jsonl"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole.partition("\n")[2], encoding="utf-8")
    assert warm(tmp_path, "shown", f"warmup.demonstrations={export}") == 2
    assert "has changed since step 2; begin anew with another --name" in capsys.readouterr().err
    file.write_text(whole, encoding="utf-8")
    assert warm(tmp_path, "shown", f"warmup.demonstrations={export}") == 0
    assert record_of(tmp_path, "shown").status == "done"


def _never(*arguments: object) -> float:
    raise AssertionError("a step was taken")


@pytest.mark.long
def test_a_runs_correct_rollouts_are_demonstrations_and_rl_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--workspace", str(tmp_path / "ws"), "--no-prefect"]
    quick = [word for setting in QUICK for word in ("--set", setting)]
    assert run_command(["train", "tiny", "--run", "source", *options, *quick, "--set", "rollout.temperature=0.5"]) == 0
    correct = "SELECT count(*) AS n FROM rollouts WHERE run = 'source' AND outcome = 'CORRECT'"
    assert open_storage(tmp_path / "ws").database.query(correct).to_pylist()[0]["n"]
    folder = tmp_path / "elsewhere"
    assert run_command(["export", "source", "--rollouts", "--to", str(folder), *options[:2]]) == 0
    shown = [shown_by(tmp_path, demonstrations) for demonstrations in ("source", str(folder))]
    assert shown[0] == shown[1] != []
    more = ("warmup.demonstrations=source", "warmup.block_share=0.5", "model.tuning=lora", "warmup.learning_rate=0.001")
    assert warm(tmp_path, "copied", *more) == 0
    said = capsys.readouterr().out
    policy = tmp_path / "ws" / "warmups" / "copied" / "policy"
    assert f"--set model.path={policy}" in said
    losses = record_of(tmp_path, "copied").losses
    assert losses[-1] < losses[0], "adapters learn"
    assert not (policy / "adapter_config.json").exists(), "they are merged"
    begun = ["train", "tiny", "--run", "rl", *options, *quick, "--set", f"model.path={policy}"]
    assert run_command([*begun, "--set", "distillation.warmup_iterations=0"]) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (("warmup.demonstrations=nothing",), "run 'nothing'"),
        (("rollout.max_observation_tokens=16", "warmup.learning_rate=1e30"), "the loss of step"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: tuple[str, ...], told: str
) -> None:
    assert warm(tmp_path, "bad", *changes) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line


def test_other_settings_are_another_warm_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warm(tmp_path, "first", "warmup.steps=1") == 0
    assert warm(tmp_path, "first", "warmup.steps=2") == 2
    assert "exists with other settings (warmup.steps: 1 -> 2)" in capsys.readouterr().err


def test_a_training_does_not_read_it() -> None:
    settings = Settings.model_validate({"model": {"path": "mini"}})
    warmer = settings.model_copy(update={"warmup": settings.warmup.model_copy(update={"steps": 7})})
    assert settings.content_hash() == warmer.content_hash()


@pytest.mark.long
def test_under_prefect_each_step_is_a_task(tmp_path: Path) -> None:
    quick = [word for setting in (*QUICK, "warmup.steps=2") for word in ("--set", setting)]
    words = ["warmup", "tiny", "--name", "first", "--workspace", str(tmp_path / "ws"), *quick]
    home = tmp_path / "prefect"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ended = subprocess.run(
        [sys.executable, "-m", "flows.app", *words],
        env={**outside, "PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert record_of(tmp_path, "first").status == "done"
    with closing(sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True)) as database:
        flows_run = database.execute("SELECT name, state_type FROM flow_run").fetchall()
        tasks = [name for (name,) in database.execute("SELECT name FROM task_run ORDER BY start_time")]
    assert flows_run == [("first", "COMPLETED")]
    assert [name.rpartition("-")[0] for name in tasks] == [
        "evaluate before",
        "train on demonstrations",
        "evaluate after",
    ]
