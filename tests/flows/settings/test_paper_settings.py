"""The shipped settings of the paper's scale, value by value against what the paper and its closest relative state."""

from __future__ import annotations

from typing import Any

import pytest

from flows.settings.load import load_settings
from schemas.settings.data import SetName

PAPER: dict[str, Any] = {
    "iterations": 200,
    "model.tuning": "full",
    "data.questions": "hub:RUC-NLPIR/FlashRAG_datasets",
    "data.train": ("nq", "hotpotqa"),
    "data.train_split": "train",
    "data.questions_per_iteration": 256,
    "data.question_mark": True,
    "retrieval.num_passages": 3,
    "retrieval.encoder.kind": "hf",
    "retrieval.encoder.path": "intfloat/e5-base-v2",
    "retrieval.encoder.query_prefix": "query: ",
    "retrieval.encoder.passage_prefix": "passage: ",
    "rollout.group_size": 5,
    "rollout.template": "instruct",
    "rollout.max_searches": 4,
    "rollout.max_new_tokens": 512,
    "rollout.max_prompt_tokens": 2048,
    "rollout.max_observation_tokens": 512,
    "rollout.temperature": 1.0,
    "sampling.kind": "vllm",
    "reward.metric": "f1",
    "reward.format_bonus": 0.0,
    "grpo.advantage_scale": "group",
    "grpo.clip_low": 0.2,
    "grpo.clip_high": 0.2,
    "grpo.kl_coefficient": 1e-3,
    "grpo.old_logprobs": "sampler",
    "grpo.importance_cap": 2.0,
    "grpo.aggregation": "token_mean",
    "hindsight.masking": "queries",
    "hindsight.labels": "outcome",
    "hindsight.members": "group",
    "hindsight.rho": 0.0,
    "hindsight.label_metric": "f1",
    "distillation.enabled": True,
    "distillation.alpha": 1e-3,
    "distillation.warmup_iterations": 50,
    "distillation.strength.kind": "alpha",
    "distillation.schedule.kind": "constant",
    "distillation.clip": "joint",
    "distillation.positions": "query",
    "distillation.divergence": "jsd",
    "distillation.support": "teacher",
    "distillation.tail": "bucket",
    "distillation.top_k": 50,
    "update.learning_rate": 1e-6,
    "update.rollouts_per_step": 256,
    "update.epochs": 1,
    "evaluation.modes": ("greedy",),
}
TEST_SETS = {
    "nq": "test",
    "triviaqa": "test",
    "popqa": "test",
    "hotpotqa": "dev",
    "2wikimultihopqa": "dev",
    "musique": "dev",
    "bamboogle": "test",
}


@pytest.mark.parametrize(("config", "model"), [("paper_3b", "Qwen2.5-3B"), ("paper_7b", "Qwen2.5-7B")])
def test_the_papers_settings_are_the_papers(config: str, model: str) -> None:
    settings = load_settings(config)
    values = settings.model_dump()
    for name, expected in PAPER.items():
        value: Any = values
        for part in name.split("."):
            value = value[part]
        assert value == expected, name
    assert settings.model.path.startswith(f"Qwen/{model}")
    assert "wiki-18" in settings.retrieval.corpus
    assert settings.num_steps_per_iteration == 5
    assert (settings.alpha_at(50), settings.alpha_at(51)) == (0.0, 1e-3)
    assert settings.data.test_sets("dev") == tuple(SetName(*item) for item in TEST_SETS.items())
    evaluated = SetName(settings.data.dataset, settings.evaluation.split)
    assert evaluated not in {*settings.data.test_sets("dev"), *settings.data.training_sets}
