"""What decides a stage's work: its upstream's outputs, the settings it reads, the program's and its plugins' code."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from flows.plugins.check import plugin_sources
from schemas.base import hash_json
from schemas.records.ledger import StageName, StageRecord
from schemas.settings.root import Settings

# What is found follows from the index's fingerprint, which is an input of its own; not from how it is reached.
_FOUND = {"retrieval": {"num_passages"}}
# The settings that each stage reads: a change of any other leaves its work valid.
_SETTINGS_READ: dict[StageName, Any] = {
    "sample": dict.fromkeys(("seed", "model", "data", "rollout", "sampling"), True) | _FOUND,
    "score": {"reward", "grpo", "hindsight"},
    "hindsight": {"seed": True, "hindsight": True, "distillation": {"enabled"}},
    "teacher": {
        "hindsight": {"homogeneous", "unsent_queries"},
        "distillation": {"positions", "divergence", "support", "tail", "top_k"},
        "rollout": {"temperature"},
        "update": {"max_tokens_per_microbatch", "head_chunk"},
    },
    "update": {"seed", "iterations", "model", "data", "rollout", "grpo", "distillation", "update"},
    "evaluate": dict.fromkeys(("seed", "model", "data", "rollout", "sampling", "evaluation"), True) | _FOUND,
}


def input_hash(settings: Settings, stage: StageName, upstream: Sequence[StageRecord | str]) -> str:
    """Return the hash of a stage's inputs: work that was done with the same ones is not done again."""
    read = settings.model_dump(mode="json", include=_SETTINGS_READ[stage])
    inputs = [item if isinstance(item, str) else item.output_hash for item in upstream]
    plugins = plugin_sources(settings, stage)
    code: dict[str, Any] = {"code": version("sdsearch")} | ({"plugins": plugins} if plugins else {})
    return hash_json({"settings": read, "inputs": inputs, **code})
