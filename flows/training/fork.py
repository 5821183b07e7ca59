"""A fork: a new run that goes on, under other settings, from the policy where another run stands."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

from flows.console.errors import UserError
from flows.run.model_files import model_changes, model_hashes
from flows.run.records import check_settings, find_known, new_run
from flows.settings.load import stored_settings
from schemas.records.ledger import RunRecord, StageKey, StageRecord
from schemas.records.run_kind import ForkKind
from schemas.records.update import UpdateReport
from schemas.settings.root import Settings
from storage.database.stage_rows import file_of
from storage.runs.forks import share_stage
from storage.runs.hashes import hash_of
from storage.runs.lock import RunLock
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage

# Weights and optimiser of one model are no start for another.
_KEPT = ("path", "tuning", "lora_rank", "lora_alpha", "lora_targets", "dtype")


def fork_run(
    storage: Storage,
    source: str,
    run: str,
    settings: Settings,
    version: int | None = None,
    *,
    holds_source: bool = False,
) -> None:
    """Make `run` a fork of `source`, ready to be trained; one that is there already with these settings stays.

    It has the source's weights and optimiser after its last update, or after the update that made `version`, as links,
    and a ledger of its own from there. holds_source: the caller has the source's lock.
    Raises UserError for settings that cannot go on from there and for a name that is taken, RunLockedError while
    another process works on either run.
    """
    if source == run:
        raise UserError(f"--fork {run}: the fork needs a name other than its source's")
    record = storage.ledger.get_run(source)
    with RunLock(storage.workspace, run):
        known = find_known(
            storage, run, lambda kind: isinstance(kind, ForkKind) and kind.source == source, flag="--fork"
        )
        if known is not None:
            check_settings(known, settings, flag="--fork")
        else:
            done = record.policy_version if version is None else version
            with nullcontext() if holds_source else RunLock(storage.workspace, source):
                update = _starting_point(storage, record, settings, done)
                share_stage(storage.ledger, storage.artifacts, update, run)
            (report,) = storage.artifacts.read_records(file_of(update, "update"), UpdateReport)
            kind = ForkKind(source=source, first_iteration=done + 1)
            storage.create_run(new_run(run, settings, kind, report.policy_sha256))


def _starting_point(storage: Storage, record: RunRecord, settings: Settings, done: int) -> StageRecord:
    """Return the source's update that made version `done`; UserError when these settings cannot go on from it."""
    key = StageKey(run=record.run, iteration=done, stage="update")
    update = storage.ledger.done(key) if done and record.trains else None
    if update is None:
        raise UserError(f"run '{record.run}' has no update to continue from; start a new run with: --run NEW")
    if settings.iterations <= done:
        raise UserError(
            f"a fork of run '{record.run}' begins with iteration {done + 1}, but iterations is {settings.iterations}; "
            "set more iterations"
        )
    if not storage.checkpoints.has_optimiser(record.run, done):
        raise UserError(
            f"version {done} of run '{record.run}' was stored without its optimiser (storage.optimiser_every = "
            f"{stored_settings(record).storage.optimiser_every}), which a fork goes on with; train it on to its end or "
            "to a version that has one, then fork it"
        )
    _check_folder(storage, record, settings)
    former = stored_settings(record).model
    changed = [name for name in _KEPT if getattr(former, name) != getattr(settings.model, name)]
    if changed:
        differences = ", ".join(
            f"model.{name}: {getattr(former, name)} -> {getattr(settings.model, name)}" for name in changed
        )
        raise UserError(
            f"a fork continues with the weights of run '{record.run}', so these settings must stay ({differences}); "
            "change them back, or start a new run with: --run NEW"
        )
    return update


def _check_folder(storage: Storage, record: RunRecord, settings: Settings) -> None:
    """Refuse a model folder that has changed, but for the weights of full tuning, which are in the checkpoint.

    There the folder's weights are the reference of the KL from now on, as a fork is asked to go on with what changed.
    """
    kept = read_run_inputs(storage.workspace, record.run)
    if kept is None or settings.model.path != stored_settings(record).model.path:
        return
    now = model_hashes(settings.model.path, partial(hash_of, storage.workspace))
    is_lora = settings.model.tuning == "lora"
    if changes := model_changes(kept.model_files, now, with_weights=is_lora):
        raise UserError(
            f"model.path '{settings.model.path}' has changed since run '{record.run}' started ({changes}), and a "
            "fork continues with its policy; put the files back, or start a new run with: --run NEW"
        )
