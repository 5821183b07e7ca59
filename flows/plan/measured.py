"""What a run of this workspace with the same settings has measured: seconds, tokens and bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Final, NamedTuple

from flows.settings.load import stored_settings
from schemas.records.ledger import RunRecord
from schemas.records.run_kind import TrainingKind
from schemas.records.update import UpdateReport
from schemas.settings.root import Settings
from storage.database.stage_rows import file_of
from storage.errors import StorageError
from storage.runs.artifacts import ArtifactStore
from storage.runs.checkpoints import CheckpointStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

_OTHERWISE_ALIKE: Final = {"seed": 0, "iterations": 1}


class Measured(NamedTuple):
    """Means over a run's iterations.

    seconds: by stage. checkpoint_bytes: the newest version with its optimiser; None where none is kept.
    record_bytes: what an iteration leaves beside checkpoints. sampled_per_rollout: tokens, of the rollouts that an
    update reads. learnt_tokens: of all sequences that an iteration's update reads, prompts and documents included.
    """

    run: str
    host: str
    num_ranks: int
    seconds: Mapping[str, float]
    checkpoint_bytes: float | None
    record_bytes: float
    sampled_per_rollout: float
    learnt_tokens: float


def find_measured(workspace: Workspace, settings: Settings) -> Measured | None:
    """Return what the longest training with these settings measured, whatever its seed and number of iterations."""
    artifacts = ArtifactStore(workspace)
    ledger = Ledger(artifacts)
    alike = [record for record in _trainings(workspace, ledger) if _is_alike(record, settings)]
    if not alike:
        return None
    return _measured(artifacts, ledger, max(alike, key=lambda record: record.iterations_done))


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _trainings(workspace: Workspace, ledger: Ledger) -> Iterator[RunRecord]:
    for path in workspace.run_files():
        try:
            record = ledger.get_run(path.parent.name.partition("=")[2])
        except StorageError:  # A damaged record measures nothing.
            continue
        if isinstance(record.kind, TrainingKind) and record.iterations_done:
            yield record


def _is_alike(record: RunRecord, settings: Settings) -> bool:
    stored = stored_settings(record).model_copy(update=_OTHERWISE_ALIKE)
    return stored.content_hash() == settings.model_copy(update=_OTHERWISE_ALIKE).content_hash()


def _measured(artifacts: ArtifactStore, ledger: Ledger, record: RunRecord) -> Measured:
    seconds, hosts, ranks = defaultdict[str, list[float]](list), set[str](), {1}
    updates: list[UpdateReport] = []
    for key, history in ledger.histories(record.run):
        done = history.done
        if done is None or done.adopted_from is not None:
            continue
        seconds[key.stage].append(done.duration_s)
        hosts.add(done.host)
        ranks.add(done.num_ranks)
        if key.stage == "update":
            updates += artifacts.read_records(file_of(done, "update"), UpdateReport)
    steps = [step for update in updates for step in update.steps]
    store = CheckpointStore(artifacts.workspace)
    whole = [version for version in store.versions(record.run) if store.has_optimiser(record.run, version)]
    return Measured(
        run=record.run,
        host=hosts.pop() if len(hosts) == 1 else "",
        num_ranks=max(ranks),
        seconds={stage: mean(values) for stage, values in seconds.items()},
        checkpoint_bytes=float(folder_bytes(store.path(record.run, max(whole)))) if whole else None,
        record_bytes=folder_bytes(artifacts.workspace.run_folder(record.run)) / record.iterations_done,
        sampled_per_rollout=sum(step.num_completion_tokens for step in steps)
        / max(1, sum(step.num_rollouts for step in steps)),
        learnt_tokens=mean([update.num_tokens for update in updates] or [0]),
    )
