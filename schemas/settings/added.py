"""Settings that came after runs were made: at their defaults they say what held before, and change no hash."""

from __future__ import annotations

from typing import Any, Final

from schemas.settings.judge import JudgeSettings

ADDED: Final[dict[str, Any]] = {
    "distillation.strength": {"kind": "alpha", "max_share": 1.0},
    "distillation.schedule": {"kind": "constant"},
    "distillation.clip": "joint",
    "storage.keep_evaluated": False,
    "storage.optimiser_every": 1,
    "rollout.retries": 0,
    "rollout.retries_use": "off_policy",
    "reward.turn": "none",
    "reward.turn_discount": 1.0,
    "hindsight.contrast": "none",
    "hindsight.memory": 0,
    "hindsight.answer": False,
    "hindsight.own_query": "keep",
    "grpo.filter": "none",
    "grpo.resample_rounds": 3,
    "distillation.teacher": "live",
    "distillation.ema_decay": 0.95,
    "distillation.form": "loss",
    "distillation.gate": "none",
    "distillation.gate_options": {},
    "distributed.nodes": 1,
    "distributed.endpoint": "",
    "evaluation.sets": {},
    "evaluation.judge": JudgeSettings().model_dump(mode="json"),
    "distributed.devices": [],
}
"""The full name of each, and its default as JSON."""
FREE: Final = ("tracking", "distributed", "alarms", "warmup")
"""The sections that change nothing of what a run computes, but for rounding: a run may go on with others."""
FREE_PARTS: Final = ("evaluation.judge", "sampling.devices")
"""The same of parts of sections: what answers are judged by changes no answer, nor do the cards that sample."""


def is_free(name: str) -> bool:
    """Tell whether a setting, by its full name, changes nothing of what a run computes."""
    in_part = any(name == part or name.startswith(f"{part}.") for part in FREE_PARTS)
    return in_part or name.partition(".")[0] in FREE


def without_added(values: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of settings (JSON) without the free parts and the added ones at their defaults, as it is hashed."""
    tree = {name: dict(section) if isinstance(section, dict) else section for name, section in values.items()}
    for name in (*FREE_PARTS, *ADDED):
        section, _, field = name.partition(".")
        is_there = isinstance(tree.get(section), dict)
        if is_there and (name in FREE_PARTS or tree[section].get(field, ADDED[name]) == ADDED[name]):
            tree[section].pop(field, None)
    return tree


def with_added(values: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of settings (JSON) with each added one that it lacks, at its default."""
    tree = dict(values)
    for name, default in ADDED.items():
        section, _, field = name.partition(".")
        if isinstance(tree.get(section), dict):
            tree[section] = {field: default, **tree[section]}
    return tree
