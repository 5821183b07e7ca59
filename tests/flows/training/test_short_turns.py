"""Runs whose turns have room for one token: because the settings say so, or because the context is full."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain

QUICK = [
    "iterations=1",
    "data.questions_per_iteration=2",
    "evaluation.num_questions=1",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
]


def train(workspace: Path, *overrides: str) -> None:
    train_plain(load_settings("tiny", [*QUICK, *overrides]), "r", workspace, SilentReporter())


def test_turns_of_one_token(tmp_path: Path) -> None:
    train(tmp_path, "rollout.max_new_tokens=1")
    lengths = open_storage(tmp_path).database.query("SELECT len(token_ids) AS num_new FROM turns").to_pylist()
    # Each rollout uses up its three searches and one more turn.
    assert [row["num_new"] for row in lengths] == [1] * (2 * 4 * 4)


def test_a_turn_at_the_end_of_the_context(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(str(files("sdsearch.world") / "mini"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 110}))
    train(tmp_path, f"model.path={model}", "rollout.max_observation_tokens=80")
    last_turns = open_storage(tmp_path).database.query(
        "SELECT len(g.prompt_token_ids) + t.token_start + len(t.token_ids) AS num_tokens, len(t.token_ids) AS num_new "
        "FROM turns t JOIN rollouts r USING (rollout_id) JOIN groups g USING (group_id) "
        "WHERE t.turn > 0 AND t.turn = r.num_turns - 1"
    )
    ends = [(row["num_tokens"], row["num_new"]) for row in last_turns.to_pylist()]
    assert (110, 1) in ends, "the reply left room for one token"
    assert all(num_tokens <= 110 for num_tokens, _ in ends)
