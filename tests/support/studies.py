"""Studies of tests: GRPO against SD-Search on the tiny settings."""

from __future__ import annotations

import json
from collections.abc import Sequence


def study_toml(name: str, settings: Sequence[str], seeds: Sequence[int] = (0,), protocol: str = "") -> str:
    """Return a study's file: the variants `grpo`, the baseline, and `sd`; `protocol` holds lines of its table."""
    return f"""
name = "{name}"
base = "tiny"
set = {json.dumps([*settings, "model.torch_threads=1", "distillation.warmup_iterations=0"])}
baseline = "grpo"
seeds = {list(seeds)}
[protocol]
{protocol}
[variants.grpo]
title = "GRPO"
set = ["distillation.enabled=false"]
[variants.sd]
title = "SD-Search"
"""


TWINS = (
    *("iterations=2", "data.questions_per_iteration=2", "rollout.group_size=2", "rollout.max_searches=1"),
    *("rollout.max_new_tokens=24", "evaluation.num_questions=2"),
)
"""The settings of a study of two runs that can be stopped between their two iterations."""
