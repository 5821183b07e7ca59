"""What the passes of teacher and student say of each distilled token, and the records that keep it.

Shapes: `Q` distilled tokens, `V` vocabulary, `K` support, `C` its outcomes, `P` most probable tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from torch import Tensor

from schemas.records.rollout import Rollout
from schemas.records.teacher import QueryCredit, TopToken
from sdsearch.model.ranks import num_ranks

NUM_TOP_TOKENS: Final = 5
"""How many of each distribution's most probable tokens are kept to be looked at; no loss reads them."""

TextOf = Callable[[int], str]


class TopTokens(NamedTuple):
    """The most probable tokens of some distributions, best first."""

    ids_QP: Tensor
    logprobs_QP: Tensor

    @classmethod
    def of(cls, logprobs_QV: Tensor) -> TopTokens:
        """Take them from whole log-distributions."""
        top = logprobs_QV.topk(min(NUM_TOP_TOKENS, logprobs_QV.shape[1]), dim=1)
        return cls(top.indices, top.values)


@dataclass(frozen=True)
class Readings:
    """What both passes say of some tokens; columns of `credit_Q6` are QueryCredit's six numbers."""

    ids_QK: Tensor
    teacher_QC: Tensor
    credit_Q6: Tensor
    teacher_ids_QP: Tensor
    teacher_logprobs_QP: Tensor
    student_ids_QP: Tensor
    student_logprobs_QP: Tensor

    def sendable(self) -> Readings:
        """Return them in the CPU's memory where other ranks are to be sent them, else as they are."""
        if num_ranks() == 1:
            return self
        return Readings(**{name: tensor.cpu() for name, tensor in vars(self).items()})


class Told(NamedTuple):
    """The same of one token, off the device."""

    numbers: Sequence[float]
    teacher_ids: Sequence[int]
    teacher_logprobs: Sequence[float]
    student_ids: Sequence[int]
    student_logprobs: Sequence[float]


def told(readings: Sequence[Readings]) -> list[Told]:
    """Return what readings say, a token each, in their order."""
    return [
        Told(*values)
        for each in readings
        for values in zip(
            each.credit_Q6.tolist(),
            each.teacher_ids_QP.tolist(),
            each.teacher_logprobs_QP.tolist(),
            each.student_ids_QP.tolist(),
            each.student_logprobs_QP.tolist(),
            strict=True,
        )
    ]


def credit_of(
    rollout: Rollout, positions: Sequence[int], turn_of: Sequence[int], said: Sequence[Told], text_of: TextOf
) -> Iterator[QueryCredit]:
    """Yield a record for each of a rollout's positions; `turn_of` says whose turn each of its tokens is."""
    token_ids = rollout.token_ids
    for position, each in zip(positions, said, strict=True):
        teacher_logprob, student_logprob, jsd, divergence, teacher_entropy, student_entropy = each.numbers
        yield QueryCredit(
            rollout_id=rollout.id,
            group_id=rollout.group_id,
            position=position,
            turn=turn_of[position],
            token_id=token_ids[position],
            token=text_of(token_ids[position]),
            teacher_logprob=teacher_logprob,
            student_logprob=student_logprob,
            jsd=jsd,
            divergence=divergence,
            teacher_entropy=teacher_entropy,
            student_entropy=student_entropy,
            teacher_top=_top(each.teacher_ids, each.teacher_logprobs, text_of),
            student_top=_top(each.student_ids, each.student_logprobs, text_of),
        )


def _top(ids: Sequence[int], logprobs: Sequence[float], text_of: TextOf) -> tuple[TopToken, ...]:
    return tuple(
        TopToken(token_id=token, token=text_of(token), logprob=logprob)
        for token, logprob in zip(ids, logprobs, strict=True)
    )
