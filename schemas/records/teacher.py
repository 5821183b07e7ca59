"""Teacher targets: where the teacher's distributions are stored, and what they say of each query token."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class QueryCredit(Record):
    """What the teacher says of one distilled token (query tokens by default); all logs in nats."""

    rollout_id: str
    group_id: str
    position: int = Field(ge=0, description="Offset into the rollout's tokens after the prompt.")
    turn: int = Field(ge=0)
    token_id: int
    token: str
    teacher_logprob: float
    student_logprob: float = Field(description="Of the policy that sampled the group.")
    jsd: float = Field(description="Exact full-vocabulary Jensen-Shannon divergence of teacher and student.")
    divergence: float = Field(
        description="Of teacher and student as the settings measure it: the term of L_SD, at the sampling weights."
    )
    teacher_entropy: float
    student_entropy: float


class TeacherTargets(Record):
    """One rollout's rows in the stage's tensor file."""

    rollout_id: str
    group_id: str
    row_start: int = Field(ge=0, description="First row of this rollout in the tensors `ids`, `logprobs` (Q, K).")
    num_rows: int = Field(ge=0, description="Number of distilled tokens, in the order of `positions`.")
    positions: tuple[int, ...] = Field(description="Offsets into the rollout's tokens.")
    support_size: int = Field(ge=1, description="K: tokens kept per position.")
    context_shift: int = Field(
        description="Teacher position minus student position: the block's length in tokens (of the first block, where "
        "each turn has its own)."
    )
    num_tokens: int = Field(
        ge=0, description="Tokens that the teacher's and the student's passes saw, prompts and blocks included."
    )
    mean_jsd: float
