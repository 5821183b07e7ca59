"""Whole runs of the plain loop with the mini policy: every table filled, the same twice, resumed where it stopped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import flows.training.stages.update
from flows.console.errors import UserError
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.settings.root import Settings

QUICK = ["evaluation.num_questions=4", "data.questions_per_iteration=3", "model.torch_threads=1"]
TIMES = {"started_at", "finished_at", "duration_s", "host", "pid", "created_at", "updated_at", "run"}


def quick(*overrides: str) -> Settings:
    return load_settings("tiny", [*QUICK, *overrides])


def train(workspace: Path, run: str, settings: Settings | None, resume: bool = False) -> None:
    train_plain(settings, run, workspace, SilentReporter(), resume=resume)


def rows(workspace: Path, table: str, run: str) -> list[dict]:
    """Return a table's rows of a run without what depends on time, place or the run's name."""
    found = (
        open_storage(workspace).database.query(f'SELECT * FROM "{table}" WHERE run = $run', {"run": run}).to_pylist()
    )
    cleaned = [{k: v for k, v in row.items() if k not in TIMES and not k.endswith("duration_s")} for row in found]
    for row in cleaned:
        if row.get("retrieval"):
            row["retrieval"] = {name: value for name, value in row["retrieval"].items() if name != "seconds"}
        for name in ("tensor_path", "outputs", "settings_json", "output_hash", "input_hash"):
            row.pop(name, None)
    return sorted(cleaned, key=str)


TABLES = [
    "questions",
    "groups",
    "rollouts",
    "turns",
    "searches",
    "iteration_metrics",
    "hindsight_blocks",
    "hindsight_attempts",
    "teacher_targets",
    "query_credit",
    "update_metrics",
    "evaluations",
    "evaluation_answers",
    "stages",
    "runs",
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    train(folder, "first", quick())
    return folder


def test_a_checkpoint_brings_the_settings_that_belong_to_it(workspace: Path, tmp_path: Path) -> None:
    checkpoint = open_storage(workspace).checkpoints.path("first", 3)
    mine = tmp_path / "mine.toml"
    mine.write_text(f"[model]\npath = '{checkpoint}'\n", encoding="utf-8")
    again, before = load_settings(str(mine)), quick()
    assert (again.rollout.template, again.rollout.max_new_tokens) == ("compact", 40)
    assert again.update.learning_rate == before.update.learning_rate
    assert again.data.questions_per_iteration == 3


def test_a_run_fills_every_table(workspace: Path) -> None:
    counts = {table: len(rows(workspace, table, "first")) for table in TABLES}
    assert all(counts.values()), counts
    assert counts["rollouts"] == 3 * 3 * 4
    assert counts["stages"] == 3 * 5 + 3
    (run,) = rows(workspace, "runs", "first")
    assert (run["status"], run["iterations_done"], run["policy_version"]) == ("done", 3, 3)
    assert len(run["policy_sha256"]) == 64
    steps = rows(workspace, "update_metrics", "first")
    alphas = {row["iteration"]: row["alpha"] for row in steps}
    assert alphas == {1: 0.0, 2: 0.1, 3: 0.1}
    assert {row["iteration"] for row in rows(workspace, "query_credit", "first")} == {2, 3}
    assert all(row["sd_loss"] > 0 for row in steps if row["iteration"] > 1 and row["num_distilled_tokens"])


def test_the_same_seed_gives_the_same_run_bit_for_bit(workspace: Path) -> None:
    train(workspace, "second", quick())
    for table in TABLES:
        assert rows(workspace, table, "second") == rows(workspace, table, "first"), table
    train(workspace, "other", quick("seed=1"))
    assert rows(workspace, "turns", "other") != rows(workspace, "turns", "first")


def test_a_failed_run_resumes_at_the_failed_stage(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = flows.training.stages.update.update_policy, Counter()

    def fails_in_the_second_iteration(*args: object, iteration: int, **kwargs: object) -> object:
        calls["update"] += 1
        yield from real(*args, iteration=iteration, **kwargs)
        if iteration == 2:
            raise UserError("drawn for the test")

    with monkeypatch.context() as patch:
        patch.setattr(flows.training.stages.update, "update_policy", fails_in_the_second_iteration)
        with pytest.raises(UserError, match="drawn for the test"):
            train(workspace, "broken", quick())
    (run,) = rows(workspace, "runs", "broken")
    assert (run["status"], run["iterations_done"]) == ("failed", 1)
    failed = [row for row in rows(workspace, "stages", "broken") if row["status"] == "failed"]
    assert [(row["stage"], row["iteration"]) for row in failed] == [("update", 2)]
    assert "drawn for the test" in failed[0]["error"]
    train(workspace, "broken", None, resume=True)
    attempts = Counter((r["iteration"], r["stage"]) for r in rows(workspace, "stages", "broken"))
    assert {key for key, count in attempts.items() if count > 1} == {(2, "update")}
    for table in TABLES:
        if table != "stages":
            assert rows(workspace, table, "broken") == rows(workspace, table, "first"), table


def test_a_finished_run_is_walked_without_work(workspace: Path) -> None:
    before = rows(workspace, "stages", "first")
    train(workspace, "first", quick())
    assert rows(workspace, "stages", "first") == before


def test_a_name_with_other_settings_is_refused(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"update.learning_rate: 0.0003 -> 0.001.*another name with --run"):
        train(workspace, "first", quick("update.learning_rate=1e-3"))


@pytest.mark.long
def test_lora_without_kl(workspace: Path) -> None:
    train(workspace, "lora", quick("model.tuning=lora", "model.lora_rank=4", "grpo.kl_coefficient=0", "iterations=2"))
    folder = workspace / "checkpoints" / "run=lora" / "version=00002"
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    assert {row["kl"] for row in rows(workspace, "update_metrics", "lora")} == {0.0}
    train(workspace, "lora2", quick("model.tuning=lora", "model.lora_rank=4", "grpo.kl_coefficient=0", "iterations=1"))
    longer = quick("model.tuning=lora", "model.lora_rank=4", "grpo.kl_coefficient=0", "iterations=2")
    storage = open_storage(workspace)
    record = storage.ledger.get_run("lora2")
    changes = {"settings_json": longer.model_dump_json(), "settings_hash": longer.content_hash()}
    storage.ledger.update_run(record.model_copy(update={**changes, "num_iterations": 2}))
    train(workspace, "lora2", None, resume=True)
    assert [r["policy_sha256"] for r in rows(workspace, "runs", "lora2")] == [
        r["policy_sha256"] for r in rows(workspace, "runs", "lora")
    ]
