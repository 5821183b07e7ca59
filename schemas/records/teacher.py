"""Teacher targets: where the teacher's distributions are stored, and what they say of each query token."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class TopToken(Record):
    """One of a distribution's most probable tokens."""

    token_id: int = Field(description="The token.")
    token: str = Field(description="Its text.")
    logprob: float = Field(description="Its log-probability, nats.")


class QueryCredit(Record):
    """What the teacher says of one distilled token (query tokens by default); all logs in nats."""

    rollout_id: str = Field(description="The rollout.")
    group_id: str = Field(description="Its group.")
    position: int = Field(ge=0, description="Offset into the rollout's tokens after the prompt.")
    turn: int = Field(ge=0, description="Its turn in the rollout, from 0.")
    token_id: int = Field(description="The token that was sampled.")
    token: str = Field(description="Its text.")
    teacher_logprob: float = Field(description="Teacher's log-probability of it, nats; with a contrast the target's.")
    student_logprob: float = Field(description="Log-probability under the policy that sampled it, nats.")
    jsd: float = Field(
        description="Exact Jensen-Shannon divergence of teacher and student over the whole vocabulary, nats."
    )
    divergence: float = Field(
        description="Divergence of teacher and student as the settings measure it (kind, support, tail), the "
        "term of L_SD at the weights that sampled: nats, without unit for mse."
    )
    teacher_entropy: float = Field(description="Entropy of the teacher's distribution, nats.")
    student_entropy: float = Field(description="Entropy of the student's distribution, nats.")
    teacher_top: tuple[TopToken, ...] = Field(
        default=(),
        description="The teacher's five most probable tokens at this position, best first; empty where an earlier "
        "version wrote the record.",
    )
    student_top: tuple[TopToken, ...] = Field(
        default=(), description="The same of the student: the policy that sampled, without the hindsight block."
    )


class TeacherTargets(Record):
    """One rollout's rows in the stage's tensor file."""

    rollout_id: str = Field(description="The rollout.")
    group_id: str = Field(description="Its group.")
    row_start: int = Field(ge=0, description="First row of this rollout in the tensors `ids`, `logprobs` (Q, K).")
    num_rows: int = Field(ge=0, description="Number of distilled tokens, in the order of `positions`.")
    positions: tuple[int, ...] = Field(description="Their offsets into the rollout's tokens after the prompt.")
    support_size: int = Field(ge=1, description="Tokens kept per position (K).")
    context_shift: int = Field(
        description="Teacher position minus student position: the block's length in tokens (of the first block, where "
        "each turn has its own)."
    )
    num_tokens: int = Field(
        ge=0, description="Tokens that the teacher's and the student's passes saw, prompts and blocks included."
    )
    mean_jsd: float = Field(description="Mean Jensen-Shannon divergence over the rollout's distilled tokens, nats.")
    gates: tuple[float, ...] = Field(
        default=(), description="What distillation.gate leaves of each distilled token, 0 to 1; empty: all of each."
    )
    turn_leanings: tuple[float, ...] = Field(
        default=(),
        description="What the teacher says of each turn, -1 to 1: tanh of the mean gated log-ratio of its distilled "
        "tokens, 0 without any; empty in runs of earlier versions. distillation.form 'advantage' weighs by it.",
    )
