"""A loss or gradient that is not finite: the step is refused and kept, the run stops, resume repeats the step."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from transformers.utils.logging import disable_progress_bar

import flows.training.stages.update
from flows.app import run_command
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.records.update import RefusedStep
from storage.disk.manifest import verify_folder
from tests.support.ledger import attempts_of

OVERRIDES = [
    "iterations=2",
    "data.questions_per_iteration=2",
    "rollout.group_size=3",
    "rollout.max_new_tokens=16",
    "distillation.warmup_iterations=0",
    "update.rollouts_per_step=3",
    "evaluation.num_questions=1",
    "evaluation.modes=['greedy']",
    "model.torch_threads=1",
]


@pytest.fixture(autouse=True)
def quiet_libraries() -> None:
    disable_progress_bar()


def test_a_poisoned_batch_is_refused_kept_and_repeated_cleanly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sampled log-probability of the second iteration is minus infinity, once: its ratio overflows."""
    real, poisoned = flows.training.stages.update.training_rollouts, []

    def with_one_infinite_logprob(*records: object) -> list:
        rollouts = real(*records)
        if rollouts[0].rollout_id.startswith("00002/") and not poisoned:
            victim = next(i for i, rollout in enumerate(rollouts) if rollout.advantage or rollout.distilled)
            logprobs = (-math.inf, *rollouts[victim].sampled_logprobs[1:])
            rollouts[victim] = dataclasses.replace(rollouts[victim], sampled_logprobs=logprobs)
            poisoned.append(rollouts[victim].rollout_id)
        return rollouts

    monkeypatch.setattr(flows.training.stages.update, "training_rollouts", with_one_infinite_logprob)
    options = [text for override in OVERRIDES for text in ("--set", override)]
    where = ["--workspace", str(tmp_path), "--no-prefect"]
    assert run_command(["train", "tiny", "--run", "r", *options, *where]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: iteration 2, optimiser step ")
    assert message.count("\n") == 1
    assert f"rollouts that are not finite: {poisoned[0]} (1 of 3)" in message

    (path,) = (tmp_path / "refused" / "run=r").iterdir()
    assert message.rstrip().endswith(f": {path}")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("run") == "r"
    refused = RefusedStep.model_validate_json(json.dumps(content))
    assert refused.settings == load_settings("tiny", OVERRIDES)
    assert (refused.iteration, refused.alpha, len(refused.rollouts)) == (2, 0.1, 3)
    storage = open_storage(tmp_path)
    stored = storage.database.query("SELECT rollout_id, advantage FROM rollouts WHERE iteration = 2").to_pylist()
    assert {(item.rollout_id, item.advantage) for item in refused.rollouts} <= {tuple(r.values()) for r in stored}
    (bad,) = [item for item in refused.rollouts if item.rollout_id == poisoned[0]]
    assert bad.sampled_logprobs[0] == -math.inf
    assert not all(map(math.isfinite, (bad.policy_loss, bad.kl, bad.sd_loss, bad.grad_norm)))

    verify_folder(storage.checkpoints.path("r", 1))
    assert storage.checkpoints.versions("r") == [1]
    assert storage.ledger.get_run("r").status == "failed"
    failed = [record for record in attempts_of(storage.ledger, "r") if record.status == "failed"]
    assert [(record.stage, record.iteration) for record in failed] == [("update", 2)]
    assert "optimiser step" in failed[0].error

    assert run_command(["resume", "r", *where]) == 0
    assert storage.ledger.get_run("r").status == "done"
    attempts = [r.attempt for r in attempts_of(storage.ledger, "r") if (r.stage, r.iteration) == ("update", 2)]
    assert sorted(attempts) == [1, 2]
    assert all(r.attempt == 1 for r in attempts_of(storage.ledger, "r") if (r.stage, r.iteration) != ("update", 2))
