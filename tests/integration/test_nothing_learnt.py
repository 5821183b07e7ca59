"""Runs of a policy with random weights, which writes no turn: said once, kept with the run, ended by setting."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from flows.cli import app
from flows.errors import UserError
from flows.report import SilentReporter
from flows.rows import file_of
from flows.settings import load_settings
from flows.train import open_stores, train_plain
from flows.watch import Watch
from schemas.config import Settings
from schemas.ledger import StageKey
from schemas.rollout import Group
from schemas.score import Score
from schemas.update import UpdateReport
from sdsearch.policy import load_tokenizer

QUICK = [
    "data.questions_per_iteration=2",
    "rollout.max_new_tokens=12",
    "rollout.max_searches=1",
    "evaluation.num_questions=4",
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
    return [(w.kind, w.iteration, w.text) for w in open_stores(workspace).ledger.get_run(run).warnings]


def test_each_warning_is_said_once_and_kept(model: Path, tmp_path: Path) -> None:
    settings = load_settings("tiny", [*QUICK, f"model.path={model}", "iterations=3"])
    said = train(tmp_path, settings)
    told = kept(tmp_path)
    assert [(kind, iteration) for kind, iteration, _ in told] == [
        ("no_protocol", 0),
        ("no_mixed_group", 2),
        ("no_query", 2),
        ("no_gradient", 2),
    ]
    assert said == [text for _, _, text in told]
    assert "of 4 evaluated questions 4 got neither a search nor an answer; to '" in said[0]
    assert "raise rollout.max_new_tokens, which cut this turn; or set rollout.template = 'instruct'" in said[0]
    assert train(tmp_path, None) == [], "a run that goes on does not repeat itself"
    assert kept(tmp_path) == told


def test_a_run_ends_where_the_settings_say_so_and_again_when_it_is_resumed(model: Path, tmp_path: Path) -> None:
    changes = [*QUICK, f"model.path={model}", "iterations=1"]
    settings = load_settings("tiny", [*changes, "nothing_learnt.action=stop"])
    for attempt in (settings, None):
        with pytest.raises(UserError, match=r"writes? the turns.*run 'r' ends here.*nothing_learnt.action=warn"):
            train(tmp_path, attempt)
        run = open_stores(tmp_path).ledger.get_run("r")
        assert (run.status, run.iterations_done, len(run.warnings)) == ("failed", 0, 1)
    # The setting changes no result, so the same run goes on under the other.
    assert train(tmp_path, load_settings("tiny", changes)) == []
    run = open_stores(tmp_path).ledger.get_run("r")
    assert (run.status, run.iterations_done) == ("done", 1)


def test_a_policy_that_knows_the_protocol_is_not_warned_and_its_figures_are_those_of_its_files(tmp_path: Path) -> None:
    settings = load_settings("tiny", [*QUICK, "rollout.max_new_tokens=40", "iterations=2"])
    train(tmp_path, settings)
    assert "no_protocol" not in [kind for kind, _, _ in kept(tmp_path)]
    stores = open_stores(tmp_path)
    runtime = SimpleNamespace(run="r", stores=stores, settings=settings)
    figures = Watch(runtime)._figures(1, 2)  # type: ignore[arg-type]
    for iteration in (1, 2):
        read = {}
        for stage, name, kind in (
            ("sample", "groups", Group),
            ("persist", "scores", Score),
            ("update", "update", UpdateReport),
        ):
            record = stores.ledger.done(StageKey(run="r", iteration=iteration, stage=stage))
            read[name] = stores.artifacts.read_records(file_of(record, name), kind)
        rollouts = [rollout for group in read["groups"] for rollout in group.rollouts]
        mixed = {score.group_id for score in read["scores"] if score.advantage}
        found = figures[iteration - 1]
        assert found.iteration == iteration
        assert found.num_mixed_groups == len(mixed)
        assert found.num_searches == sum(len(rollout.queries) for rollout in rollouts) > 0
        assert found.num_hits == sum(len(turn.hits) for rollout in rollouts for turn in rollout.turns) > 0
        assert found.reward_mean == pytest.approx(sum(s.reward for s in read["scores"]) / len(rollouts))
        assert found.grad_norm == max(step.grad_norm for step in read["update"][0].steps)


def test_the_commands_say_it_too(model: Path, tmp_path: Path) -> None:
    folder = ["--workspace", str(tmp_path)]
    changes = [part for change in [*QUICK, f"model.path={model}", "iterations=1"] for part in ("--set", change)]
    runner = CliRunner()
    sentence = "of 4 evaluated questions 4 got neither a search nor an answer"
    trained = runner.invoke(app, ["train", "tiny", "--run", "r", "--no-prefect", *changes, *folder])
    assert trained.exit_code == 0
    assert (
        " ".join(trained.output.split()).count(
            f"warning: the policy does not write the turns of the protocol: {sentence}"
        )
        == 1
    )
    shown = runner.invoke(app, ["show", "r", *folder])
    assert f"warning after 0 updates: the policy does not write the turns of the protocol: {sentence}" in " ".join(
        shown.output.split()
    )
    evaluated = runner.invoke(app, ["evaluate", "--run", "r", "--num-questions", "4", *folder])
    assert f"{sentence} (docs/nothing-learnt.md)" in " ".join(evaluated.output.split())
