"""The settings of the method itself; marks as in schemas.settings.root."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from schemas.base import Positive, Section
from schemas.plugins import Names, Options
from schemas.settings.strength import AlphaStrength, ConstantSchedule, ScheduleSettings, StrengthSettings

BLOCK_TOKENS: Final = 1024
"""Longest block of queries: ten times what a group's usually take."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class RewardSettings(Section):
    """What a rollout earns; the labels of the hindsight block come from hindsight.label_metric instead."""

    name: Annotated[str, Names("reward")] = Field(
        default="answer", description="The reward: 'answer', of metric and format_bonus below (relative), or a plugin."
    )
    options: Options = Field(default={}, description="The settings of a plugin's reward.")
    metric: Literal["f1", "em", "cover_em"] = Field(
        default="f1",
        description="Answer metric that is the reward: token F1 (relative), exact match, or whether the answer "
        "contains a golden one.",
    )
    format_bonus: float = Field(
        default=0.0, ge=0, description="Added to the reward when the format is valid; never enters a label (ours)."
    )

    turn: Literal["none", "information_gain"] = Field(
        default="none",
        description="What each turn earns of its own: nothing (paper), or the gain in the golden answer's likelihood "
        "that it brought, and the last turn the reward (IGPO): then each turn has an advantage of its own.",
    )
    turn_discount: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="With turn 'information_gain': what a turn's advantage takes of the next turn's (ours).",
    )

    @property
    def given(self) -> Options:
        """The options that the reward is made with."""
        own = {"metric": self.metric, "format_bonus": self.format_bonus}
        return own if self.name == "answer" else self.options


class GrpoSettings(Section):
    """Group-relative policy optimisation (paper, section 3.1)."""

    advantage_scale: Literal["group", "batch", "none"] = Field(
        default="group", description="Divide by the group's or the batch's standard deviation, or not at all (ours)."
    )
    clip_low: float = Field(default=0.2, ge=0, lt=1, description="Ratios below 1 - clip_low are clipped (relative).")
    clip_high: float = Field(default=0.2, ge=0, description="Ratios above 1 + clip_high are clipped (relative).")
    old_logprobs: Literal["sampler", "trainer"] = Field(
        default="sampler",
        description="Whose log-probabilities the ratio's denominator is: stored at sampling, or the trainer's, "
        "computed before the first step (ours).",
    )
    importance_cap: float = Field(
        default=2.0,
        ge=1,
        description="Truncated importance weights: with the trainer's denominator each token's loss is weighted by "
        "min(trainer / sampler, cap); with the sampler's the ratio itself is kept within the cap (ours).",
    )
    kl_coefficient: float = Field(
        default=1e-3,
        ge=0,
        description="Weight of the k3 KL to the starting weights (relative); 0 drops it and its forward pass.",
    )
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean", description="How token losses of an optimiser step become one number (ours)."
    )
    constant_tokens: Positive = Field(
        default=1024, description="Tokens per rollout that aggregation 'constant' divides by (Dr. GRPO)."
    )
    filter: Literal["none", "zero_advantage", "resample"] = Field(
        default="none",
        description="Groups in which every advantage is 0: they count in the mean of the policy loss and in its KL "
        "(relative); they are left out of both and keep L_SD; or further questions are sampled in their place, too "
        "(DAPO's dynamic sampling).",
    )
    resample_rounds: Positive = Field(
        default=3,
        description="With filter 'resample': rounds of further questions at most, each of as many as there are groups "
        "too few with different rewards (ours).",
    )


class HindsightSettings(Section):
    """The hindsight block (paper, section 3.2; ablations in section 5)."""

    masking: Annotated[str, Names("block")] = Field(
        default="queries",
        description="What a block keeps of a sibling: its queries (paper); with 'none' the whole trajectory; or no "
        "siblings at all but the documents of the focal turn (paper's ablations); or a plugin.",
    )
    masking_options: Options = Field(default={}, description="The settings of a plugin's block.")
    labels: Literal["outcome", "none", "shuffled", "random"] = Field(
        default="outcome",
        description="Labels of the attempts (paper); none, or the group's shuffled (its ablations); or each drawn by a "
        "coin, so that not even their number says how many succeeded (ours).",
    )
    members: Literal["group", "leave_one_out", "focal_only", "correct_only"] = Field(
        default="group",
        description="Which siblings a block shows: all (paper); all but the focal one, the focal one alone, or those "
        "whose outcome is CORRECT (its ablations).",
    )
    contrast: Literal["none", "flipped", "unlabelled"] = Field(
        default="none",
        description="A second teacher pass whose effect is subtracted, so that what any block does cancels out: none "
        "(paper), or over the same block with inverted labels, or without labels.",
    )
    memory: int = Field(
        default=0,
        ge=0,
        description="For a group whose outcomes are all equal: of how many earlier iterations, the newest in which its "
        "question was sampled, the block shows the rollouts too (0: paper).",
    )
    answer: bool = Field(
        default=False,
        description="Whether the block ends in the golden answers, which leaks them to the teacher (paper: no).",
    )
    own_query: Literal["keep", "drop", "paraphrase"] = Field(
        default="keep",
        description="The query that the teacher judges, where the block shows it: kept (paper), replaced by a mark, or "
        "by another text of as many tokens; then each query has a block of its own. Shows how much of the teacher's "
        "lift is copying.",
    )
    unsent_queries: Literal["drop", "keep"] = Field(
        default="drop",
        description="Queries that brought no documents into their rollout (on its last turn, which is not sent): left "
        "out of the blocks and of L_SD's query tokens, or kept in both (ours).",
    )
    homogeneous: Literal["keep", "skip"] = Field(
        default="keep", description="Whether groups whose outcomes are all equal are distilled (ours)."
    )
    rho: float = Field(default=0.0, ge=0, lt=1, description="CORRECT when the label metric exceeds rho (paper: 0).")
    label_metric: Literal["f1", "em"] = Field(default="f1", description="Metric the labels come from (paper: F1).")
    max_block_tokens: int = Field(
        default=0,
        ge=0,
        description="Longest block: of a longer one the longest attempts are cut first, to a common length, and what "
        "is cut is counted. 0 is 1,024, and with masking 'none' whatever the model's context has room for (ours).",
    )

    @property
    def block_tokens(self) -> int | None:
        """Longest block that is asked for; None where the model's context alone bounds it."""
        return self.max_block_tokens or (None if self.masking == "none" else BLOCK_TOKENS)


class DistillationSettings(Section):
    """On-policy self-distillation (paper, section 3.3; ablations in section 5)."""

    enabled: bool = Field(default=True, description="False is plain GRPO: no hindsight block, no teacher pass.")
    alpha: float = Field(
        default=1e-3,
        ge=0,
        description="Weight of L_SD after the warm-up (paper); with strength 'gradient_share' its weight until both "
        "gradients have been measured.",
    )
    warmup_iterations: int = Field(
        default=50, ge=0, description="Iterations with alpha hard zero and no teacher pass (paper); not a ramp."
    )
    strength: StrengthSettings = Field(
        default=AlphaStrength(), description="What decides alpha: itself (paper), or the norms of both gradients."
    )
    schedule: ScheduleSettings = Field(
        default=ConstantSchedule(), description="How the strength goes on after the warm-up: it stays (paper) or falls."
    )
    clip: Literal["joint", "own"] = Field(
        default="joint",
        description="Gradient clipping (update.max_grad_norm) of the sum of both gradients (ours), or of each on its "
        "own, the distillation's to its share of GRPO's, so that it cannot shrink GRPO's step.",
    )
    teacher: Literal["live", "initial", "ema"] = Field(
        default="live",
        description="Whose weights the teacher has: the policy's that sampled the group (paper), the starting weights' "
        "('initial'), or an exponential moving average of the policies ('ema', one step an iteration).",
    )
    ema_decay: float = Field(
        default=0.95,
        ge=0,
        lt=1,
        description="With teacher 'ema': what the average keeps of itself at each new version of the policy (ours); "
        "with 0 it is the policy.",
    )
    form: Literal["loss", "advantage"] = Field(
        default="loss",
        description="What the teacher's word becomes: the loss L_SD (paper), or a weight of 1 ± alpha on the advantage "
        "of each turn that has distilled tokens (AgentOPSD, OPID).",
    )
    gate: Annotated[str, Names("gate")] = Field(
        default="none",
        description="How much of each distilled token is taken: all (paper); by the sigmoid of the teacher's log-ratio "
        "(SDAR); by the block's influence (ICSD); less of turns far from the teacher (SOD); where the log-ratio agrees "
        "with the outcome; or a plugin.",
    )
    gate_options: Options = Field(
        default={}, description="The settings of the gate: sharpness of 'sigmoid', or a plugin's."
    )
    positions: Literal["query", "completion"] = Field(
        default="query", description="Tokens that are distilled: query tokens (paper), or all sampled ones (ablation)."
    )
    divergence: Annotated[str, Names("divergence")] = Field(
        default="jsd",
        description="Teacher-student divergence: jsd (paper), KL(teacher || student), KL(student || teacher), the "
        "squared difference of the probabilities, summed over the outcomes (ablations), or a plugin.",
    )
    divergence_options: Options = Field(default={}, description="The settings of a plugin's divergence.")
    support: Literal["teacher", "student", "full"] = Field(
        default="teacher",
        description="Whose top-k tokens are compared (ours); 'full' is the exact divergence, without top_k and tail.",
    )
    tail: Literal["bucket", "renormalise"] = Field(
        default="bucket", description="One more outcome for the mass outside the support, or none (ours)."
    )
    top_k: Positive = Field(default=50, description="Tokens of the support (paper); at most the vocabulary.")


class UpdateSettings(Section):
    """The optimiser and how an iteration's rollouts are cut into steps."""

    learning_rate: float = Field(default=1e-6, gt=0, description="AdamW's learning rate (relative).")
    warmup_steps: int = Field(default=0, ge=0, description="Optimiser steps of linear learning-rate warm-up (ours).")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Learning rate after the warm-up: constant, or falling over the run (ours)."
    )
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="AdamW's betas (ours).")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay (ours).")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="Gradient clipping: the gradient is scaled down to this norm (ours); 0 is off."
    )
    rollouts_per_step: Positive = Field(
        default=256,
        description="Rollouts an optimiser step (relative); an iteration takes as many steps as it needs for all.",
    )
    epochs: Positive = Field(
        default=1, description="Passes over an iteration's rollouts, each in its own order (ours)."
    )
    max_tokens_per_microbatch: Positive = Field(
        default=16384,
        description="Gradient accumulation: a step's rollouts are forwarded in micro-batches of at most so many "
        "tokens (a prompt that rollouts share counts once), whose gradients are summed in fp32; a memory bound.",
    )
    head_chunk: Positive = Field(
        default=2048, description="Positions whose logits exist at one time, in fp32; a memory bound."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep only what enters each layer and compute the rest again in the backward pass: less memory, "
        "a fifth to a third more time, the same result.",
    )
    dropout: bool = Field(
        default=False,
        description="Keep the model's own dropout on in the policy's pass (ours: off). What is sampled has none, so "
        "with it the first ratio is not 1.",
    )
    gradient_parts_every: int = Field(
        default=10,
        ge=0,
        description="Iterations between measurements of both gradient norms (a second backward pass); 0: never.",
    )
