"""What an export is asked for: which version of which run's policy, as what, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.console.errors import UserError
from flows.evaluation.plan import settings_of_run
from schemas.paths import local_path
from schemas.records.ledger import RunRecord
from schemas.settings.root import Settings
from storage.storage import Storage


@dataclass(frozen=True)
class ExportPlan:
    """An export of a run's policy at a version; `adapter` leaves a LoRA adapter apart from its base."""

    record: RunRecord
    settings: Settings
    version: int
    folder: Path
    adapter: bool


def plan_export(storage: Storage, run: str, to: str, version: int | None, *, adapter: bool) -> ExportPlan:
    """Return what is asked for; without a version the newest.

    Raises UserError for a run that trains nothing, a version that is not kept, an adapter of a run without one, and a
    folder that is there already.
    """
    record = storage.ledger.get_run(run)
    settings = settings_of_run(record, [], "export")
    held = sorted({0, *storage.checkpoints.versions(run)})
    chosen = record.policy_version if version is None else version
    if chosen not in held:
        raise UserError(
            f"run '{run}' has no checkpoint of version {chosen}; it has: {', '.join(map(str, held))} (0 are the "
            "starting weights); choose one with --version"
        )
    if adapter and settings.model.tuning != "lora":
        raise UserError(f"--adapter: run '{run}' tunes all weights and has no LoRA adapter; leave it out")
    return ExportPlan(record, settings, chosen, free_folder(to), adapter)


def has_script(plan: ExportPlan) -> bool:
    """Whether the script that answers with vLLM alone goes with it: it reads tags, and loads a whole model."""
    return plan.settings.rollout.protocol == "tags" and not plan.adapter


def free_folder(to: str) -> Path:
    """Return the folder to write; UserError where something is there already."""
    folder = local_path(to).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to {to}: there is something already; name a folder that is empty or not there")
    return folder
