"""The reference curves that come with the program, and which of them a run can be compared with.

Two runs are compared when they differ in the method alone: in distillation, in the hindsight block, and in what changes
no result. All else must be equal: data, rollouts, reward, GRPO, optimiser, the evaluated questions and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

from rich.table import Table

from flows.console.terminal import make_table
from schemas.base import hash_json
from schemas.records.evaluation import EvaluationReport
from schemas.records.reference import ReferenceCurve, ReferenceRun
from schemas.settings.root import Settings

_MUST_BE_EQUAL: Final[dict[str, set[str]]] = {
    # Section -> what of it may differ; of the sections that are not named, everything.
    "model": {"device", "torch_threads", "attention", "check_tolerance", "trust_remote_code"},
    "data": {"test"},
    "retrieval": set(),
    "rollout": {"questions_per_batch"},
    "sampling": set(),
    "reward": set(),
    "grpo": set(),
    "update": {"max_tokens_per_microbatch", "head_chunk", "gradient_checkpointing", "gradient_parts_every"},
    "evaluation": {"every", "modes", "sets"},
}
_COLUMNS: Final = ("updates", "decoding", "EM", "EM of {0}", "difference", "search quality", "of {0}", "difference")


def comparable_hash(settings: Settings) -> str:
    """Return the hash of what must be equal for a comparison; a setting at its default counts as not set."""
    return hash_json(
        [
            settings.iterations,
            {
                section: {name: value for name, value in _set_values(settings, section).items() if name not in free}
                for section, free in _MUST_BE_EQUAL.items()
            },
        ]
    )


def find_reference(settings: Settings, curves: Sequence[ReferenceCurve] | None = None) -> ReferenceCurve | None:
    """Return the reference that a run with these settings can be compared with, of the shipped ones unless given.

    None for other settings or another seed, and for a run that does not distil: it would be compared with itself.
    """
    if not settings.distils:
        return None
    wanted = comparable_hash(settings)
    for curve in shipped_references() if curves is None else curves:
        if curve.comparable_hash == wanted and _run_of(curve, settings.seed) is not None:
            return curve
    return None


def shipped_references() -> list[ReferenceCurve]:
    """Return the curves that come with the program."""
    folder = files("flows") / "references"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".json")), key=lambda item: item.name)
    return [ReferenceCurve.model_validate_json(item.read_bytes()) for item in found]


def reference_table(curve: ReferenceCurve, seed: int, reports: Sequence[EvaluationReport]) -> Table | None:
    """Return the table of a run beside the reference with its seed, after the same updates; None where none meet."""
    run = _run_of(curve, seed)
    others = {(o.iteration, o.mode): o for o in run.evaluations} if run else {}
    rows: list[tuple[Any, ...]] = []
    of_main_set = [report for report in reports if not report.further]
    for own in sorted(of_main_set, key=lambda report: (report.mode, report.iteration)):
        other = others.get((own.iteration, own.mode))
        if other is not None and own.num_questions == other.num_questions and own.iteration > 0:
            pairs = ((own.em, other.em), (own.search_quality, other.search_quality))
            figures = (text for a, b in pairs for text in (f"{a:.3f}", f"{b:.3f}", f"{a - b:+.3f}"))
            rows.append((own.iteration, own.mode, *figures))
    if not rows:
        return None
    title = f"beside {curve.title} with seed {seed}, stored with the program"
    return make_table([column.format(curve.title) for column in _COLUMNS], rows, title)


def _run_of(curve: ReferenceCurve, seed: int) -> ReferenceRun | None:
    return next((run for run in curve.runs if run.seed == seed), None)


def _set_values(settings: Settings, section: str) -> dict[str, Any]:
    model = getattr(settings, section)
    values: dict[str, Any] = model.model_dump(mode="json", exclude_defaults=True)
    # What kind a section is tells which other fields it has.
    kind = getattr(model, "kind", None)
    return values if kind is None else {"kind": kind, **values}
