"""Reports of the update stage."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from schemas.base import Record
from schemas.settings.root import RetriesUse, Settings


class StepReport(Record):
    """One optimiser step.

    Rollouts whose gradient is exactly zero (advantage 0, no KL, nothing distilled) count in every mean of the losses,
    but are not forwarded: what is told of the tokens themselves (entropy, ratios, the sampler's log-probabilities)
    covers the tokens that were read, and is None where there were none.
    """

    step: int = Field(description="Optimiser steps since the start of the run, this one included.")
    num_rollouts: int = Field(description="Rollouts of the step.")
    num_completion_tokens: int = Field(description="Sampled tokens of the step, over which its means are taken.")
    num_read_tokens: int = Field(
        description="Sampled tokens that were forwarded: all but those of rollouts whose gradient is exactly zero."
    )
    num_distilled_tokens: int = Field(description="Tokens that the distillation term reads.")
    loss: float = Field(description="policy_loss + kl_coefficient * kl + alpha * sd_loss.")
    policy_loss: float = Field(description="Clipped surrogate, nats.")
    sd_loss: float = Field(description="Distillation term before alpha, nats; 0 while alpha is 0.")
    kl: float = Field(description="k3 estimate of KL(policy || reference), nats per token.")
    alpha: float = Field(description="Weight of the distillation term.")
    schedule_weight: float | None = Field(
        default=None,
        description="What warm-up and schedule leave of the distillation's strength, 0 to 1; empty in runs of earlier "
        "versions.",
    )
    entropy: float | None = Field(
        description="Mean entropy of the policy at the read tokens, nats; empty where none was read."
    )
    grad_norm: float = Field(description="Norm of the whole gradient before clipping.")
    grad_norm_grpo: float | None = Field(description="Norm of the GRPO part with KL; empty where it was not measured.")
    grad_norm_sd: float | None = Field(
        description="Norm of alpha times the distillation part; empty where it was not measured."
    )
    grad_noise: float | None = Field(
        default=None,
        description="Error that bfloat16 leaves in the gradient, estimated as a 26th of grad_norm_grpo "
        "(measured on the mini policy); empty under float32 weights, and where the parts were not "
        "measured.",
    )
    sd_clip_factor: float | None = Field(
        default=None,
        description="What the distillation's gradient was scaled by before it was added, with distillation.clip 'own'; "
        "empty otherwise.",
    )
    smoothed_norm_grpo: float | None = Field(
        default=None,
        description="Moving average of grad_norm_grpo that strength 'gradient_share' sets alpha by; empty before its "
        "first measurement and with other strengths.",
    )
    smoothed_norm_sd: float | None = Field(
        default=None, description="The same of the norm of the distillation's gradient before alpha."
    )
    gap_kind: Literal["entropy", "log_ratio"] | None = Field(
        default=None, description="The gap that schedule 'retire' looks at; empty with other schedules."
    )
    smoothed_gap: float | None = Field(
        default=None, description="Moving average of that gap, nats; empty before its first measurement."
    )
    largest_gap: float | None = Field(default=None, description="The largest that the moving average has been, nats.")
    retired_to: float | None = Field(
        default=None, description="What schedule 'retire' has left of the strength so far; empty with other schedules."
    )
    clip_share: float | None = Field(
        description="Share of the read tokens whose ratio was clipped; empty where none was read."
    )
    ratio_max: float | None = Field(
        description="Largest ratio of the policy's and the denominator's probability of a read token; empty "
        "where none was read."
    )
    truncated_share: float | None = Field(
        description="Share of the read tokens whose importance weight was cut to importance_cap; empty where "
        "none was read."
    )
    sampler_kl: float | None = Field(
        description="k3 estimate of KL(sampler || trainer) at the read tokens, nats per token; empty where "
        "none was read."
    )
    sampler_max_difference: float | None = Field(
        description="Largest difference of the sampler's and the trainer's log-probability of a read token, "
        "nats; empty where none was read."
    )
    num_missing_logprobs: int = Field(
        description="Read tokens without a log-probability of the sampler; their ratio is taken as 1."
    )
    learning_rate: float = Field(description="Learning rate of the step.")
    waiting_share: float | None = Field(
        default=None,
        description="Share of the step's passes in which ranks wait for the one with the longest micro-batch, counted "
        "in tokens; empty with one rank.",
    )


class UpdateReport(Record):
    """What an iteration's update did."""

    iteration: int = Field(description="Iteration of the run.")
    policy_version: int = Field(description="Version of the weights after the iteration's whole update.")
    policy_sha256: str = Field(description="Hash of the trained tensors after the update.")
    steps: tuple[StepReport, ...] = Field(description="The optimiser steps, in order.")
    num_tokens: int = Field(description="Tokens of the trained sequences, prompts and documents included.")


class RefusedRollout(Record):
    """One rollout of a refused step; its losses and gradient are its share of the step's."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    rollout_id: str = Field(description="The rollout.")
    prompt_token_ids: tuple[int, ...] = Field(description="Tokens of the prompt.")
    token_ids: tuple[int, ...] = Field(description="Tokens after the prompt.")
    completion_positions: tuple[int, ...] = Field(description="Offsets of the sampled tokens, which the loss reads.")
    distilled_positions: tuple[int, ...] = Field(description="Offsets of the distilled tokens.")
    sampled_logprobs: tuple[float | None, ...] = Field(
        description="The sampler's, one a sampled token, nats; None where it gave none."
    )
    policy_logprobs: tuple[float, ...] = Field(description="Of the weights before the step, nats.")
    trainer_logprobs: tuple[float, ...] | None = Field(
        description="Of the weights before the iteration's first step; None where the policy's or the sampler's serve."
    )
    reference_logprobs: tuple[float, ...] | None = Field(description="Of the reference; None without KL.")
    advantage: float = Field(description="Group-relative advantage.")
    turn_advantages: tuple[float, ...] = Field(
        default=(), description="With reward.turn: the advantage of each sampled token, which is its turn's."
    )
    retry: RetriesUse | None = Field(default=None, description="What a retry is for; empty for a sibling.")
    in_policy_loss: bool = Field(
        default=True, description="False where it counts neither in the policy loss nor in the KL, but in L_SD alone."
    )
    policy_loss: float = Field(description="Clipped surrogate, nats.")
    kl: float = Field(description="k3 estimate of KL(policy || reference), nats.")
    sd_loss: float = Field(description="Distillation term before alpha, nats.")
    grad_norm: float = Field(description="Norm of its gradient.")


class RefusedStep(Record):
    """An optimiser step that was not taken because its loss or gradient is not finite, and where it came from."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    iteration: int = Field(description="Iteration of the run.")
    step: int = Field(description="Optimiser steps since the start of the run, this one included.")
    loss: float = Field(description="The step's loss.")
    grad_norm: float = Field(description="Norm of the whole gradient before clipping.")
    alpha: float = Field(description="Weight of the distillation term.")
    learning_rate: float = Field(description="Learning rate of the step.")
    weights_not_finite: tuple[str, ...] = Field(description="Trained tensors that are not finite before the step.")
    gradients_not_finite: tuple[str, ...] = Field(description="Trained tensors whose gradient is not finite.")
    settings: Settings = Field(description="Of the run, seeds included.")
    rollouts: tuple[RefusedRollout, ...] = Field(description="The step's rollouts, in the order of the step.")
