"""Log-probabilities of sampled tokens without gradient: of the trainer and the reference, once before the first step.

Shapes: `N` read positions, `V` vocabulary, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdsearch.model.batching import TokenBatch, TokenSequence, microbatches
from sdsearch.model.policy import head, read_logprobs, reference_weights
from sdsearch.training.loss import ScoredRollout, TrainingRollout
from sdsearch.training.loss_settings import LossSettings


def score_once(
    model: nn.Module,
    frozen: nn.Module | None,
    rollouts: Sequence[TrainingRollout],
    settings: LossSettings,
    *,
    one_step: bool = False,
) -> list[ScoredRollout]:
    """Add to each rollout what its losses compare the policy with; nothing is computed that no loss reads.

    With `one_step` the weights do not move before the rollouts are read, so that pass gives the trainer's own too.
    """
    trainer: Sequence[Tensor | None] = [None] * len(rollouts)
    reference: Sequence[Tensor | None] = [None] * len(rollouts)
    sequences = [rollout.sequence for rollout in rollouts]
    if settings.grpo.old_logprobs == "trainer" and not one_step:
        trainer = sequence_logprobs(model, sequences, settings)
    if settings.grpo.kl_coefficient:
        with reference_weights(model, frozen) as reference_model:
            reference = sequence_logprobs(reference_model, sequences, settings)
    return [
        ScoredRollout(rollout, sampled_tensor(rollout.sampled_logprobs), own, base)
        for rollout, own, base in zip(rollouts, trainer, reference, strict=True)
    ]


def sampled_tensor(logprobs: Sequence[float | None]) -> Tensor:
    """Return the sampler's log-probabilities (N,), NaN where it gave none."""
    return torch.tensor([math.nan if logprob is None else logprob for logprob in logprobs])


@torch.no_grad()
def sequence_logprobs(model: nn.Module, sequences: Sequence[TokenSequence], settings: LossSettings) -> list[Tensor]:
    """Return the log-probabilities (N,) of each sequence's read tokens at the rollout temperature, on the CPU."""
    results: list[Tensor] = [torch.empty(0)] * len(sequences)
    device = next(model.parameters()).device
    logits_fn = head(model)
    for members in microbatches(sequences, settings.max_tokens_per_microbatch):
        batch = TokenBatch.of([sequences[i] for i in members], device)
        hidden_ND = batch.hidden_at_reads(model)
        parts = []
        for start in range(0, len(hidden_ND), settings.head_chunk):
            part = slice(start, start + settings.head_chunk)
            logprobs_NV = read_logprobs(logits_fn, hidden_ND[part], settings.temperature)
            parts.append(logprobs_NV.gather(1, batch.targets_N[part, None])[:, 0])
        for index, part in zip(
            members, torch.cat(parts).split([len(sequences[i].reads) for i in members]), strict=True
        ):
            results[index] = part.cpu()
    return results
