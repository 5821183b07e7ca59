"""Writes an export, and pushes it to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console

from flows.console.terminal import print_line
from flows.export.card import model_card
from flows.export.plan import ExportPlan, free_folder, has_script, plan_export
from flows.export.rollouts import export_rollouts
from flows.run.inputs import check_policy_model
from flows.run.live import open_runtime
from flows.run.progress import SilentReporter
from schemas.errors import UserError, library_errors
from schemas.records.run_inputs import PromptFrame
from schemas.records.run_kind import EvaluationKind
from schemas.settings.root import Settings
from sdsearch.protocol.parsing import TAG_PROTOCOL
from storage.disk.files import write_bytes_atomic, write_json_atomic
from storage.disk.folders import build_folder
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage
from storage.workspace import open_existing

_SCRIPT: Final = Path(__file__).with_name("answer.py")
"""It goes with each policy that searches in tags, and reads the file of its name beside it."""


def export_in_terminal(
    run: str,
    to: str,
    *,
    version: int | None,
    adapter: bool,
    rollouts: bool,
    push: str | None,
    folder: Path,
    console: Console,
) -> None:
    """Export a run's policy, or with `rollouts` what it sampled, and say where it is."""
    if rollouts and (adapter or push or version is not None):
        raise UserError("export --rollouts writes data; leave --version, --adapter and --push out")
    storage = Storage(open_existing(folder))
    if rollouts:
        target = free_folder(to)
        number = export_rollouts(storage, run, target)
        print_line(console, f"{target}: {number} rollouts, as rollouts.parquet and conversations.jsonl")
        return
    plan = plan_export(storage, run, to, version, adapter=adapter)
    export_policy(plan, storage)
    print_line(console, f"{plan.folder}: version {plan.version} of run {run}, with a model card")
    if push is not None:
        print_line(console, f"pushed: {push_folder(plan.folder, push)}")


def export_policy(plan: ExportPlan, storage: Storage) -> None:
    """Write the folder, whole or not at all; errors as of `LivePolicy.move_to`, and UserError for a changed model."""
    run = plan.record.run
    inputs = read_run_inputs(storage.workspace, run)
    frame = inputs.frame if inputs else None
    evaluators = [run] + [
        other.run
        for other in storage.ledger.list_runs()
        if isinstance(other.kind, EvaluationKind) and other.kind.source == run and other.kind.version == plan.version
    ]
    with open_runtime(plan.settings, run, storage, SilentReporter()) as live, build_folder(plan.folder) as building:
        check_policy_model(live, plan.record, plan.version)
        live.policy.move_to(plan.version)
        live.policy.export_to(building.path, adapter=plan.adapter)
        card = model_card(plan, frame, evaluators, storage.database)
        write_bytes_atomic(building.path / "README.md", card.encode(), building.path)
        if frame is not None and has_script(plan):
            write_bytes_atomic(building.path / _SCRIPT.name, _SCRIPT.read_bytes(), building.path)
            write_json_atomic(building.path / "answer.json", how_to_answer(plan.settings, frame), building.path)


def how_to_answer(settings: Settings, frame: PromptFrame) -> dict[str, Any]:
    """Return what the script beside the policy reads: the prompt's parts, and the rollouts' limits."""
    rollout = settings.rollout
    return {
        "before": frame.before,
        "after": frame.after,
        "head_token_ids": list(frame.head_token_ids),
        "stops": list(TAG_PROTOCOL.stops),
        "documents": list(TAG_PROTOCOL.documents),
        "dtype": settings.model.dtype,
        "context_tokens": settings.longest_conversation,
        "max_new_tokens": rollout.max_new_tokens,
        "max_searches": rollout.max_searches,
        "max_observation_tokens": rollout.max_observation_tokens,
        "num_passages": settings.retrieval.num_passages,
    }


def push_folder(folder: Path, repository: str) -> str:
    """Upload a folder to a model repository of the hub, which is made where it is missing; return its URL.

    The endpoint and the token are those of huggingface_hub (HF_ENDPOINT, HF_TOKEN). UserError where the hub refuses.
    """
    from huggingface_hub import HfApi  # Takes a second.

    remedy = "see that HF_TOKEN may write there; the folder is complete and can be pushed again"
    with library_errors(f"--push {repository}: the hub did not take {folder}", remedy):
        hub = HfApi()
        url = hub.create_repo(repository, exist_ok=True, repo_type="model")
        hub.upload_folder(folder_path=folder, repo_id=repository, commit_message="A policy trained with SD-Search")
        return str(url)
