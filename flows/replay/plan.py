"""What a replay is asked for: which iterations of which run, and the settings its teacher is asked under."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from flows.console.errors import UserError
from flows.settings.load import apply_overrides, setting_differences, stored_settings
from schemas.base import hash_json
from schemas.records.ledger import RunRecord, StageKey
from schemas.records.run_kind import ReplayKind
from schemas.settings.root import DistillationSettings, Settings
from storage.storage import Storage
from storage.workspace import validate_run_name

_RANGE = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")
_CHANGEABLE: Final = re.compile(
    r"hindsight\..+|distillation\.(teacher|ema_decay|positions|gate|gate_options\..+|divergence|divergence_options\..+)"
    r"|distillation\.(support|tail|top_k)"
    r"|update\.(max_tokens_per_microbatch|head_chunk)|tracking(\..+)?"
)
_OF_THE_LOSS: Final = re.compile(
    r"distillation\.(enabled|alpha|warmup_iterations|clip|form|strength(\..+)?|schedule(\..+)?)"
)
_TRACKING: Final = "tracking"  # Trackers change nothing of what is replayed.


@dataclass(frozen=True)
class ReplayPlan:
    """A replay of the iterations `first` to `last`, both included, of the run `source`."""

    run: str
    source: str
    first: int
    last: int
    settings: Settings

    @property
    def kind(self) -> ReplayKind:
        """What the run's record says of it."""
        return ReplayKind(source=self.source, first=self.first, last=self.last)

    @property
    def iterations(self) -> range:
        """The iterations in order."""
        return range(self.first, self.last + 1)


def plan_replay(source: RunRecord, iterations: str, overrides: Sequence[str], run: str | None) -> ReplayPlan:
    """Return what is asked for; a replay without a name gets one that the same request gives again.

    Raises UserError for iterations that are no range and settings that a replay cannot change.
    """
    if isinstance(source.kind, ReplayKind):
        raise UserError(f"run '{source.run}' is a replay itself; name the run that sampled: {source.source}")
    first, last = parse_iterations(iterations)
    settings = replay_settings(source, overrides)
    if run is None:
        request = hash_json([source.run, first, last, settings.content_hash()])
        run = f"{source.run[:60]}-replay-{request[:8]}"
    return ReplayPlan(validate_run_name(run), source.run, first, last, settings)


def plan_of(record: RunRecord) -> ReplayPlan:
    """Return what a replay that exists was asked for."""
    kind = record.kind
    assert isinstance(kind, ReplayKind), f"{record.run} is no replay"
    return ReplayPlan(record.run, kind.source, kind.first, kind.last, stored_settings(record))


def parse_iterations(text: str) -> tuple[int, int]:
    """Return the first and the last iteration of '3:8', or of a single '3'; UserError for anything else."""
    match = _RANGE.fullmatch(text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"--iterations {text}: expected FIRST:LAST, counted from 1 and both included, such as 3:8")
    return first, last


def format_iterations(iterations: Iterable[int]) -> str:
    """Return iterations as people name them, such as '1:3, 5'."""
    ranges: list[list[int]] = []
    for iteration in sorted(iterations):
        if ranges and iteration == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], iteration]
        else:
            ranges.append([iteration])
    return ", ".join(":".join(map(str, ends)) for ends in ranges)


def replay_settings(source: RunRecord, overrides: Sequence[str]) -> Settings:
    """Return the source's settings with `overrides`, and with a teacher in every iteration.

    Raises UserError for a change that a replay cannot make, and for what no settings may hold.
    """
    values = json.loads(source.settings_json)
    distillation = values["distillation"]
    # Neither plain GRPO nor warm-up and schedule nor a loss of no weight keeps a replay from asking the teacher.
    alpha = distillation["alpha"] or DistillationSettings().alpha
    always = {"enabled": True, "alpha": alpha, "warmup_iterations": 0, "schedule": {"kind": "constant"}}
    values["distillation"] = {**distillation, **always}
    unchanged = json.dumps(values)
    settings = apply_overrides(values, overrides, f"run '{source.run}'")
    for name, _, _ in setting_differences(unchanged, settings):
        if not _CHANGEABLE.fullmatch(name):
            raise UserError(_refusal(name, source.run))
    return settings


def requested_changes(source: RunRecord, settings: Settings) -> str:
    """Return `name: source's -> replay's` for each setting that was asked for, empty for none."""
    changes = setting_differences(source.settings_json, settings)
    asked = [c for c in changes if not _OF_THE_LOSS.fullmatch(c[0]) and c[0].partition(".")[0] != _TRACKING]
    return ", ".join(f"{name}: {before} -> {after}" for name, before, after in asked)


def check_replayable(storage: Storage, plan: ReplayPlan) -> None:
    """Raise UserError, which names the iterations that can be replayed, when one of the plan's cannot.

    What is needed of an iteration are its rollouts, their scores, and the weights that sampled: the checkpoint of one
    update before.
    """
    settings = stored_settings(storage.ledger.get_run(plan.source))
    held = {0, *storage.checkpoints.versions(plan.source)}
    scored = {
        iteration
        for iteration in range(1, settings.iterations + 1)
        if all(storage.ledger.done(_key(plan.source, iteration, stage)) for stage in ("sample", "score"))
    }
    possible = [iteration for iteration in sorted(scored) if iteration - 1 in held]
    instead = f"what can be replayed: {format_iterations(possible) or 'nothing'}"
    if absent := [iteration for iteration in plan.iterations if iteration not in scored]:
        raise UserError(f"run '{plan.source}' has no rollouts of iterations {format_iterations(absent)}; {instead}")
    if gone := [iteration for iteration in plan.iterations if iteration - 1 not in held]:
        kept = settings.storage.keep_checkpoints
        raise UserError(
            f"run '{plan.source}' does not have the weights any more that sampled iterations "
            f"{format_iterations(gone)}: it keeps the newest {kept} checkpoints and the best on dev; {instead}; a "
            "larger storage.keep_checkpoints when training keeps more"
        )
    _check_average(storage, plan, settings, held)


def _check_average(storage: Storage, plan: ReplayPlan, kept: Settings, held: Collection[int]) -> None:
    """Raise UserError where teacher 'ema' needs checkpoints that are gone: each has the average of a run that kept it.

    An average that the source did not keep, or kept with another decay, is made from all versions before.
    """
    wanted, source = plan.settings.distillation, kept.distillation
    is_kept = kept.distils and source.teacher == "ema" and source.ema_decay == wanted.ema_decay
    if wanted.teacher != "ema" or is_kept:
        return
    needed = range(storage.ledger.start_of(plan.source), plan.last)
    if gone := [version for version in needed if version not in held]:
        raise UserError(
            f"distillation.teacher 'ema' averages versions {format_iterations(needed)} of run '{plan.source}', which "
            f"does not have {format_iterations(gone)} any more (it keeps the newest {kept.storage.keep_checkpoints} "
            "checkpoints and the best on dev); replay earlier iterations, or train with distillation.teacher = 'ema', "
            "which keeps the average, or with a larger storage.keep_checkpoints"
        )


def _key(run: str, iteration: int, stage: str) -> StageKey:
    return StageKey.model_validate({"run": run, "iteration": iteration, "stage": stage})


def _refusal(name: str, source: str) -> str:
    if _OF_THE_LOSS.fullmatch(name):
        return (
            f"--set {name}: it weighs the teacher in the loss, and a replay trains nothing: it asks the teacher in "
            "every iteration; leave it out"
        )
    return (
        f"--set {name}: a replay takes the rollouts of run '{source}' as they are and asks another teacher about them; "
        "it can change hindsight.*, distillation.teacher, .positions, .gate, .divergence, .support, .tail and .top_k, "
        "and update.max_tokens_per_microbatch and .head_chunk; train a run with the others"
    )
