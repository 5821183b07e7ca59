"""Log-probabilities of sampled tokens without gradient: of the trainer and the reference, once before the first step.

Shapes: `N` read positions, `V` vocabulary, `D` width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from sdsearch.model.balance import own_batches
from sdsearch.model.batching import TokenBatch, TokenSequence, idle_pass
from sdsearch.model.policy import head, read_logprobs, reference_weights
from sdsearch.model.ranks import merged
from sdsearch.model.sharding import together
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
    own: dict[int, Tensor] = {}
    for members in own_batches(sequences, settings.max_tokens_per_microbatch):
        if members is None:
            together(model, partial(idle_pass, model))
            continue
        part = [sequences[index] for index in members]
        logprobs_N = together(model, partial(_read, model, part, settings))
        pieces = logprobs_N.split([len(sequence.reads) for sequence in part])
        own.update((index, piece.cpu()) for index, piece in zip(members, pieces, strict=True))
    read = merged(own)
    return [read.get(index, torch.empty(0)) for index in range(len(sequences))]


def _read(model: nn.Module, sequences: Sequence[TokenSequence], settings: LossSettings) -> Tensor:
    batch = TokenBatch.of(sequences, next(model.parameters()).device)
    hidden_ND, logits_fn = batch.hidden_at_reads(model), head(model)
    parts = []
    for start in range(0, len(hidden_ND), settings.head_chunk):
        part = slice(start, start + settings.head_chunk)
        logprobs_NV = read_logprobs(logits_fn, hidden_ND[part], settings.temperature)
        parts.append(logprobs_NV.gather(1, batch.targets_N[part, None])[:, 0])
    return torch.cat(parts)
