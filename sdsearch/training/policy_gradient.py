"""The clipped policy loss and the KL to the reference, token by token (paper, section 3.1).

Shapes: `N` sampled tokens. What is masked is never here: only sampled tokens are gathered.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    policy_logprob_N: Tensor,
    old_logprob_N: Tensor,
    advantage_N: Tensor,
    clip_low: float,
    clip_high: float,
    importance_weight_N: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, ratio, clipped), each (N,): PPO's pessimistic surrogate times the importance weight."""
    ratio_N = (policy_logprob_N - old_logprob_N).exp()
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    plain_N, clipped_N = ratio_N * advantage_N, bounded_N * advantage_N
    loss_N = -torch.minimum(plain_N, clipped_N) * importance_weight_N
    return loss_N, ratio_N.detach(), clipped_N < plain_N


def truncated_importance_weight(trainer_logprob_N: Tensor, sampled_logprob_N: Tensor, cap: float) -> Tensor:
    """Return min(trainer / sampler, cap), (N,), without gradient: for a ratio whose denominator is the trainer."""
    return (trainer_logprob_N - sampled_logprob_N).exp().clamp(max=cap).detach()


def filled(sampled_logprob_N: Tensor, own_logprob_N: Tensor) -> Tensor:
    """Return the sampler's log-probabilities (N,), the given own one where it is NaN: there the ratio is 1."""
    return torch.where(sampled_logprob_N.isnan(), own_logprob_N, sampled_logprob_N)


def ratio_truncation(policy_logprob_N: Tensor, sampled_logprob_N: Tensor, cap: float) -> Tensor:
    """Return the factor (N,), without gradient, that keeps policy / sampler within `cap`.

    With the sampler as denominator the ratio itself is the importance weight, so it is what must be bounded.
    """
    return (cap * (sampled_logprob_N - policy_logprob_N).exp()).clamp(max=1).detach()


def k3(logprob_N: Tensor, other_logprob_N: Tensor) -> Tensor:
    """Return Schulman's k3 estimate (N,) of KL(p || other) at tokens drawn from p: r - log r - 1, r = other / p."""
    log_ratio_N = other_logprob_N - logprob_N
    return log_ratio_N.exp() - log_ratio_N - 1
