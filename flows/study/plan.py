"""What a study will train: its file, the settings of its variants, the names of its runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from flows.console.errors import UserError
from flows.settings.load import load_settings, setting_differences, shipped_configs, shipped_studies
from flows.settings.toml_files import read_toml
from schemas.base import Record
from schemas.paths import local_path
from schemas.records.study import Study, Variant
from schemas.settings.explain import explain
from schemas.settings.root import Settings
from schemas.settings.void import effective, void_notes
from storage.runs.studies import read_study
from storage.workspace import Workspace

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class PlannedRun:
    """One training of a study: an ordinary run; `settings` are what `config` and `overrides` say."""

    run: str
    variant: str
    seed: int
    config: str
    overrides: tuple[str, ...]
    settings: Settings


def load_study(name: str, workspace: Workspace) -> Study:
    """Return a study: a shipped one's name, the path of a TOML file, or the name of one that the workspace holds.

    Raises UserError, one line a problem, for a file that is not there or no TOML, unknown keys and wrong types.
    """
    shipped, path = shipped_studies(), local_path(name)
    if name not in shipped and not path.is_file():
        kept = read_study(workspace, name)
        if kept is not None:
            return kept
    study = _validated(read_toml(name, shipped, "study"), name)
    if study.base in shipped_configs():
        return study
    # A path is kept whole, so that the study means the same from any folder.
    return study.model_copy(update={"base": str(path.resolve().parent / local_path(study.base))})


def plan_runs(study: Study) -> list[PlannedRun]:
    """Return the study's runs, variant by variant.

    Raises UserError, naming the variant, for settings that cannot be and for variants that cannot be compared.
    """
    by_variant = {name: _variant_settings(study, name) for name in study.variants}
    _check_comparable(study, by_variant)
    return [
        PlannedRun(
            run=study.run_of(name, seed),
            variant=name,
            seed=seed,
            config=study.base,
            overrides=(*study.set, *study.variants[name].set, f"seed={seed}"),
            settings=settings.model_copy(update={"seed": seed}),
        )
        for name, settings in by_variant.items()
        for seed in study.seeds
    ]


def _validated(values: dict[str, Any], source: str) -> Study:
    variants = values.get("variants", {})
    if isinstance(variants, dict):
        # One by one, so that a misspelt key is explained with its variant's name and the nearest key.
        for name, variant in variants.items():
            _parse(Variant, variant, f"{source}: variants.{name}")
    return _parse(Study, values, source)


def _parse(record_type: type[R], values: Any, source: str) -> R:
    try:
        return record_type.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        raise UserError(explain(error, record_type, source)) from error


def _variant_settings(study: Study, name: str) -> Settings:
    """Return a variant's settings; an error names what is wrong: the base, the study's `set` or the variant's."""
    own = study.variants[name].set
    for where, overrides in (("set", study.set), (f"variants.{name}.set", own)):
        for override in overrides:
            if override.partition("=")[0].strip() == "seed":
                raise UserError(f"study {study.name}: {where}: 'seed' is the study's: list it in seeds")
    try:
        return load_settings(study.base, [*study.set, *own])
    except UserError as error:
        tried = {"base": (), "set": study.set}
        wrong = (where for where, overrides in tried.items() if not _can_be(study.base, overrides))
        where = next(wrong, f"variants.{name}.set")
        lines = [line.removeprefix(f"{study.base} with --set: ") for line in str(error).splitlines()]
        raise UserError("\n".join(f"study {study.name}: {where}: {line}" for line in lines)) from error


def _can_be(base: str, overrides: tuple[str, ...]) -> bool:
    try:
        load_settings(base, overrides)
    except UserError:
        return False
    return True


def _check_comparable(study: Study, by_variant: dict[str, Settings]) -> None:
    """Refuse variants that answer other questions than the baseline, and two that are the same."""
    baseline = by_variant[study.baseline]
    names_of: dict[str, str] = {}
    for name, settings in by_variant.items():
        if _evaluated_on(settings) != _evaluated_on(baseline):
            raise UserError(
                f"study {study.name}: variants.{name}: is evaluated otherwise than the baseline '{study.baseline}'; "
                "put evaluation.*, data.questions and data.dataset into the study's own set"
            )
        same = names_of.setdefault(effective(settings).content_hash(), name)
        if same != name:
            what = _why_the_same(settings, by_variant[same], same)
            raise UserError(f"study {study.name}: variants.{name}: {what}; change its set, or remove it")


def _why_the_same(settings: Settings, other: Settings, other_name: str) -> str:
    """Return why two variants would train alike, though their settings may differ."""
    differing = [name for name, _, _ in setting_differences(other.model_dump_json(), settings)]
    if not differing:
        return f"has the same settings as '{other_name}'"
    reasons = [*void_notes(settings), *void_notes(other)]
    for variant in (settings, other):
        if variant.only_warms_up:
            reasons.append(
                f"distillation.warmup_iterations ({variant.distillation.warmup_iterations}) is not below iterations "
                f"({variant.iterations}), so alpha is zero to the end: lower it, or raise iterations"
            )
    because = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    return f"trains exactly as '{other_name}' does, since {', '.join(differing)} cannot act{because}"


def _evaluated_on(settings: Settings) -> tuple[object, ...]:
    data = settings.data
    return settings.evaluation, data.location_of(data.dataset), data.dataset, data.question_mark
