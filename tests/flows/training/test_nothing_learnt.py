"""Runs of a policy with random weights, which writes no turn: said once, kept with the run, ended by setting."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from flows.app import app
from flows.console.errors import UserError
from flows.run.progress import SilentReporter
from flows.run.stage_files import StageFiles
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from flows.training.watch import Watch
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.update import UpdateReport
from schemas.settings.root import Settings
from sdsearch.model.policy import load_tokenizer
from storage.database.stage_rows import file_of

QUICK = [
    "data.questions_per_iteration=1",
    "rollout.max_new_tokens=12",
    "rollout.max_searches=1",
    "evaluation.num_questions=2",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
    "nothing_learnt.after_iterations=2",
]


class Listener(SilentReporter):
    """Keeps what a run warns of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, text: str) -> None:
        """Keep the sentence."""
        self.warnings.append(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, mini = tmp_path_factory.mktemp("model"), str(files("sdsearch.world") / "mini")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(mini)).save_pretrained(folder)
    load_tokenizer(mini).save_pretrained(folder)
    return folder


def train(workspace: Path, settings: Settings | None, run: str = "r") -> list[str]:
    """Train, or go on with stored settings, and return the warnings."""
    listener = Listener()
    train_plain(settings, run, workspace, listener, resume=settings is None)
    return listener.warnings


def kept(workspace: Path, run: str = "r") -> list[tuple[str, int, str]]:
    return [(w.kind, w.iteration, w.text) for w in open_storage(workspace).ledger.get_run(run).warnings]


@pytest.fixture(scope="module")
def lost(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A workspace with a run that learnt nothing, and what it warned of."""
    workspace = tmp_path_factory.mktemp("lost")
    return workspace, train(workspace, load_settings("tiny", [*QUICK, f"model.path={model}", "iterations=3"]))


def test_each_warning_is_said_once_and_kept(lost: tuple[Path, list[str]]) -> None:
    workspace, said = lost
    told = kept(workspace)
    assert [(kind, iteration) for kind, iteration, _ in told] == [
        ("no_protocol", 0),
        ("no_mixed_group", 2),
        ("no_query", 2),
        ("no_gradient", 2),
    ]
    assert said == [text for _, _, text in told]
    assert "of 2 evaluated questions 2 got neither a search nor an answer; to '" in said[0]
    assert "raise rollout.max_new_tokens, which cut this turn; or set rollout.template = 'instruct'" in said[0]
    assert train(workspace, None) == [], "a run that goes on does not repeat itself"
    assert kept(workspace) == told


def test_show_and_evaluate_say_it_too(lost: tuple[Path, list[str]]) -> None:
    workspace, said = lost
    folder, runner = ["--workspace", str(workspace)], CliRunner()
    shown = " ".join(runner.invoke(app, ["show", "r", *folder]).output.split())
    for updates, text in zip((0, 2, 2, 2), said, strict=True):
        assert f"warning after {updates} updates: {text}" in shown
    evaluated = runner.invoke(app, ["evaluate", "--run", "r", "--num-questions", "2", *folder]).output
    assert "of 2 evaluated questions 2 got neither a search nor an answer (docs/how-to/nothing-learnt.md)" in " ".join(
        evaluated.split()
    )


def test_a_run_ends_where_the_settings_say_so_and_again_when_it_is_resumed(model: Path, tmp_path: Path) -> None:
    changes = [*QUICK, f"model.path={model}", "iterations=1"]
    settings = load_settings("tiny", [*changes, "nothing_learnt.action=stop"])
    for attempt in (settings, None):
        with pytest.raises(UserError, match=r"writes? the turns.*run 'r' ends here.*nothing_learnt.action=warn"):
            train(tmp_path, attempt)
        run = open_storage(tmp_path).ledger.get_run("r")
        assert (run.status, run.iterations_done, len(run.warnings)) == ("failed", 0, 1)
    # The setting changes no result, so the same run goes on under the other.
    assert train(tmp_path, load_settings("tiny", changes)) == []
    run = open_storage(tmp_path).ledger.get_run("r")
    assert (run.status, run.iterations_done) == ("done", 1)


def test_a_policy_that_knows_the_protocol_is_not_warned_and_its_figures_are_those_of_its_files(tmp_path: Path) -> None:
    settings = load_settings(
        "tiny", [*QUICK, "rollout.max_new_tokens=40", "data.questions_per_iteration=2", "iterations=1"]
    )
    train(tmp_path, settings)
    assert "no_protocol" not in [kind for kind, _, _ in kept(tmp_path)]
    storage = open_storage(tmp_path)
    runtime = SimpleNamespace(run="r", storage=storage, settings=settings)
    (found,) = Watch(runtime, StageFiles(storage.artifacts))._figures(1, 1)  # type: ignore[arg-type]
    read = {}
    for stage, name, kind in (
        ("sample", "groups", Group),
        ("score", "scores", Score),
        ("update", "update", UpdateReport),
    ):
        record = storage.ledger.done(StageKey(run="r", iteration=1, stage=stage))
        read[name] = storage.artifacts.read_records(file_of(record, name), kind)
    rollouts = [rollout for group in read["groups"] for rollout in group.rollouts]
    assert found.iteration == 1
    assert found.num_mixed_groups == len({score.group_id for score in read["scores"] if score.advantage})
    assert found.num_searches == sum(len(rollout.queries) for rollout in rollouts) > 0
    assert found.num_hits == sum(len(turn.hits) for rollout in rollouts for turn in rollout.turns) > 0
    assert found.reward_mean == pytest.approx(sum(score.reward for score in read["scores"]) / len(rollouts))
    assert found.grad_norm == max(step.grad_norm for step in read["update"][0].steps)
