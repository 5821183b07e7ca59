"""What a screening is asked for: whose stored iterations, which variants, how many groups and draws."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from flows.console.errors import UserError
from flows.replay.plan import ReplayPlan, parse_iterations, plan_replay
from flows.settings.load import apply_overrides, shipped_studies
from flows.settings.toml_files import read_toml
from schemas.base import hash_json
from schemas.records.ledger import RunRecord
from schemas.records.study import Variant
from schemas.settings.explain import explain
from schemas.settings.root import Settings
from storage.workspace import validate_run_name

_WEIGHS_THE_LOSS: Final = re.compile(
    r"distillation\.(alpha|warmup_iterations|clip|strength(\..+)?|schedule(\..+)?|enabled|form)\s*="
)
"""What a variant may set without another credit of its turns: how much of it the loss takes, and when."""


@dataclass(frozen=True)
class ScreenedVariant:
    """A variant: the replay that asks its teacher, None for plain GRPO, and its settings."""

    name: str
    title: str
    settings: Settings
    replay: ReplayPlan | None


@dataclass(frozen=True)
class ScreenPlan:
    """A screening of the iterations `first` to `last` of a run, both included."""

    source: RunRecord
    first: int
    last: int
    num_groups: int
    num_draws: int
    seed: int
    variants: tuple[ScreenedVariant, ...]

    @property
    def name(self) -> str:
        """The folder of what the turns are worth: the same for every file of variants."""
        request = [self.source.run, self.first, self.last, self.num_groups, self.num_draws, self.seed]
        return validate_run_name(f"{self.source.run[:60]}-{hash_json(request)[:8]}")

    @property
    def baseline(self) -> str:
        """Plain GRPO where the file has it, else its first variant."""
        return next((each.name for each in self.variants if each.replay is None), self.variants[0].name)


def plan_screen(
    source: RunRecord, variants: str, iterations: str, num_groups: int, num_draws: int, seed: int
) -> ScreenPlan:
    """Return what is asked for; `variants` is a TOML file with a table `variants`, such as a study, or a study's name.

    Raises UserError, naming the variant, for what is no variant and for settings that a replay cannot change.
    """
    first, last = parse_iterations(iterations)
    named = read_variants(variants)
    planned = tuple(_planned(source, f"{first}:{last}", name, one, variants) for name, one in named.items())
    return ScreenPlan(source, first, last, num_groups, num_draws, seed, planned)


def read_variants(file: str) -> dict[str, Variant]:
    """Return the variants of a file, with what a study sets of the teacher for all of them; UserError for none."""
    values = read_toml(file, shipped_studies(), "variants")
    table = values.get("variants")
    if not isinstance(table, Mapping) or not table:
        raise UserError(
            f"{file}: no variants; expected a table [variants.NAME] for each, with lines of settings in its 'set'"
        )
    common = _variant({"set": values.get("set", [])}, file).set
    shared = tuple(override for override in common if override.strip().startswith(("hindsight.", "distillation.")))
    named = {str(name): _variant(variant, f"{file}: variants.{name}") for name, variant in table.items()}
    return {name: one.model_copy(update={"set": (*shared, *one.set)}) for name, one in named.items()}


def _variant(values: Any, where: str) -> Variant:
    try:
        return Variant.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, Variant, where)) from error


def _planned(source: RunRecord, iterations: str, name: str, variant: Variant, file: str) -> ScreenedVariant:
    values = json.loads(source.settings_json)
    # Whether and how strongly the run itself distilled does not matter: a variant does unless it says otherwise.
    for weighing in ("enabled", "strength", "schedule"):
        values["distillation"].pop(weighing, None)
    try:
        settings = apply_overrides(values, variant.set, f"run '{source.run}'")
        asks = settings.distillation.enabled
        replay = plan_replay(source, iterations, _of_the_teacher(variant.set), None) if asks else None
    except UserError as error:
        raise UserError(f"{file}: variants.{name}: {error}") from error
    return ScreenedVariant(name, variant.title or name, settings, replay)


def _of_the_teacher(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if not _WEIGHS_THE_LOSS.match(override.strip())]
