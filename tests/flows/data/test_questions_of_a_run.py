"""Questions are inputs of the stages that ask them: a file that was changed since is noticed."""

from __future__ import annotations

from pathlib import Path

from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from schemas.settings.root import Settings
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.question_files import flashrag_rows, world_questions, write_rows


def settings_of(folder: Path) -> Settings:
    small = ["model.torch_threads=1", "rollout.group_size=2", "rollout.max_searches=1", "rollout.max_new_tokens=8"]
    small += ["iterations=1", "data.questions_per_iteration=2", "evaluation.num_questions=1", "evaluation.every=9"]
    return load_settings("tiny", [*small, f"data.questions={folder}/{{split}}.jsonl", "data.dataset=own"])


def test_a_changed_question_is_sampled_anew_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    """In runs of programs that did not keep what a run was begun with; others are refused."""
    write_rows(tmp_path / "dev.jsonl", flashrag_rows(world_questions("dev", 1)))
    path, rows = tmp_path / "train.jsonl", flashrag_rows(world_questions("train", 2))
    attempts = []
    for answer in (rows[0]["golden_answers"], rows[0]["golden_answers"], ["another answer"]):
        write_rows(path, [{**rows[0], "golden_answers": answer}, rows[1]])
        (tmp_path / "workspace" / "artifacts" / "run=run" / "inputs.json").unlink(missing_ok=True)
        train_plain(settings_of(tmp_path), "run", tmp_path / "workspace", SilentReporter())
        done = Storage(Workspace(tmp_path / "workspace")).ledger.done(StageKey(run="run", iteration=1, stage="sample"))
        assert done is not None
        attempts.append(done.attempt)
    assert attempts == [1, 1, 2]
