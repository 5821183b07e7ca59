"""The rollouts and models that benchmarks/update.py measures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from flows.run.policy import model_folder
from schemas.settings.root import Settings
from sdsearch.model.batching import TokenBatch, TokenSequence
from sdsearch.model.policy import load_model, set_gradient_checkpointing, trainable_parameters, with_lora
from sdsearch.training.logprobs import sequence_logprobs
from sdsearch.training.loss import ScoredRollout, TrainingRollout
from sdsearch.training.loss_settings import LossSettings

NO_TARGETS = (torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))
KL, CLIP = 1e-3, 0.2
# The sizes of SmolLM-135M.
LARGE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Case:
    """Groups of rollouts whose tokens are drawn; a rollout is its turns with a reply of documents between each two."""

    model: str
    num_groups: int
    searches: tuple[int, ...]  # one a rollout of each group
    prompt: int
    turn: int
    documents: int


CASES = {
    "mini": Case("mini", 16, (0, 1, 2, 3, 1), prompt=60, turn=20, documents=90),
    "135M ragged": Case("large", 2, (0, 1, 2, 3, 1), prompt=180, turn=60, documents=180),
    "135M even": Case("large", 1, (1, 1, 1, 1, 1), prompt=180, turn=60, documents=180),
}


def make_model(case: Case, tuning: str, checkpointing: bool) -> nn.Module:
    """Return the same weights in every process; adapters as if they had been trained."""
    torch.manual_seed(0)
    model = load_model(model_folder("mini"), "float32") if case.model == "mini" else LlamaForCausalLM(LARGE)
    if tuning == "lora":
        model = with_lora(model, 16, 32.0, "all-linear", seed=0)
        with torch.no_grad():
            for parameter in trainable_parameters(model).values():
                parameter.add_(0.01 * torch.randn_like(parameter))
    set_gradient_checkpointing(model, checkpointing)
    return model.train()


def draw_sequences(case: Case, vocabulary: int) -> list[list[TokenSequence]]:
    """Return the rollouts of each group; what a loss reads is what the policy would have sampled."""
    draw = random.Random(0)
    groups = []
    for _ in range(case.num_groups):
        context = tuple(draw.choices(range(vocabulary), k=case.prompt))
        group = []
        for searches in case.searches:
            length = case.turn + searches * (case.turn + case.documents)
            reads = [place for place in range(length) if place % (case.turn + case.documents) < case.turn]
            tokens = tuple(draw.choices(range(vocabulary), k=length))
            group.append(TokenSequence(context, tokens, tuple(reads)))
        groups.append(group)
    return groups


def settings_of(case: Case, groups: Sequence[Sequence[TokenSequence]], checkpointing: bool) -> Settings:
    """Return settings under which both ways have the same objective; a group is a micro-batch, as it is for TRL."""
    budget = max(len(TokenBatch.of(group, torch.device("cpu")).input_ids_T) for group in groups)
    return Settings(
        model={"path": case.model},
        grpo={"kl_coefficient": KL, "clip_low": CLIP, "clip_high": CLIP, "importance_cap": 1e9},
        update={
            "max_tokens_per_microbatch": budget,
            "head_chunk": 256,
            "gradient_parts_every": 0,
            "gradient_checkpointing": checkpointing,
        },
        distillation={"enabled": False},
    )


def draw_rollouts(
    model: nn.Module, groups: Sequence[Sequence[TokenSequence]], settings: Settings, file: Path
) -> list[ScoredRollout]:
    """Return the rollouts with advantages and log-probabilities near the policy's, from `file` where it exists."""
    sequences = [sequence for group in groups for sequence in group]
    if not file.exists():
        generator = torch.Generator().manual_seed(1)
        own = torch.cat(sequence_logprobs(model, sequences, LossSettings.of(settings)))
        noise = 0.1 * torch.randn(3, len(own), generator=generator)
        advantages = torch.randn(len(sequences), generator=generator)
        save_file({"sampled": own + noise[0], "reference": own + noise[1], "advantages": advantages}, file)
    stored = load_file(file)
    counts = [len(sequence.reads) for sequence in sequences]
    pieces = zip(
        sequences, stored["sampled"].split(counts), stored["reference"].split(counts), stored["advantages"], strict=True
    )
    return [
        ScoredRollout(
            TrainingRollout(str(place), sequence, tuple(sampled.tolist()), float(advantage), (), *NO_TARGETS),
            sampled,
            None,
            reference,
        )
        for place, (sequence, sampled, reference, advantage) in enumerate(pieces)
    ]
