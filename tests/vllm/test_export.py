"""The script of an exported policy with a real engine: what it prints is what greedy decoding gives here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from flows.app import run_command
from flows.evaluation.plan import Request, plan_run
from flows.evaluation.work import evaluate
from flows.retrieval.live import LiveRetriever
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from tests.support.serving import serving

# An engine of its own, beside whatever the other tests have started.
ENGINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE"}
SHORT = [
    *("iterations=1", "data.questions_per_iteration=2", "rollout.group_size=2", "evaluation.num_questions=1"),
    *("model.torch_threads=1", "evaluation.modes=['greedy']", "distillation.enabled=false"),
]


def test_an_exported_policy_answers_with_vllm_alone(tmp_path: Path) -> None:
    train_plain(load_settings("quickstart", SHORT), "source", tmp_path, SilentReporter())
    assert run_command(["export", "source", "--to", str(tmp_path / "out"), "--workspace", str(tmp_path)]) == 0
    storage = open_storage(tmp_path)
    plan = plan_run(storage.ledger.get_run("source"), [], Request(num_questions=1, name="asked"))
    evaluate(plan, storage, SilentReporter())
    rows = storage.database.query("SELECT * FROM evaluation_answers WHERE run = 'asked'").to_pylist()
    live = LiveRetriever(plan.settings.retrieval, storage.workspace)
    script = tmp_path / "out" / "answer.py"
    with serving(live.retriever) as url:
        for row in rows:
            done = subprocess.run(
                [sys.executable, str(script), row["question"], "--retriever", f"{url}/retrieve"],
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
                env=os.environ | ENGINE,
            )
            assert done.returncode == 0, done.stderr
            said = " ".join(done.stdout.split())
            assert [query for query in row["queries"] if f"<search> {query} </search>" not in said] == [], said
            if row["answer"] is not None:
                assert f"<answer> {row['answer']} </answer>" in said
