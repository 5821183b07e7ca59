"""A second teacher whose block has other labels: what any block does to the teacher cancels out.

The teacher T reads the block h, the contrast C the same block with inverted or without labels, the student S none. The
target of the distillation is

    log P(x) = log S(x) + log T(x) - log C(x) - log Z,   Z = sum over the vocabulary of S T / C,

the student moved by what the labels alone change. Where h and its contrast say the same, P is S and nothing is learnt.
It is taken over the whole vocabulary, before the support is cut. Sources: RLCSD (arXiv 2606.11709), SIPO (2609.36742),
OCSD (2608.04788); what is subtracted, and that the student is the base of it, is chosen here.
Shapes: `Q` distilled tokens, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, assert_never

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from schemas.records.hindsight import HindsightAttempt, Label
from sdsearch.credit.block_text import EncodedBlock, Render, encode_block
from sdsearch.protocol.tokens import encode_foreign

Contrast = Literal["flipped", "unlabelled"]
_OPPOSITE: Final[dict[Label, Label]] = {"CORRECT": "INCORRECT", "INCORRECT": "CORRECT"}


def contrast_target(teacher_QV: Tensor, contrast_QV: Tensor, student_QV: Tensor) -> Tensor:
    """Return the target's log-probabilities (Q, V), which sum to one: the student's plus teacher's minus contrast's."""
    return torch.log_softmax(student_QV + (teacher_QV - contrast_QV), dim=1)


def relabel(attempts: Sequence[HindsightAttempt], contrast: Contrast) -> list[HindsightAttempt]:
    """Return the attempts with the labels that the contrast's block shows."""
    return [attempt.model_copy(update={"label": _relabelled(attempt.label, contrast)}) for attempt in attempts]


def _relabelled(label: Label | None, contrast: Contrast) -> Label | None:
    match contrast:
        case "flipped":
            return _OPPOSITE[label] if label else None
        case "unlabelled":
            return None
        case unknown:
            assert_never(unknown)


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    attempts: Sequence[HindsightAttempt],
    max_tokens: int,
    render: Render,
    tags: tuple[str, ...],
    contrast: Contrast,
) -> tuple[EncodedBlock, str, list[int]]:
    """Return the block that fits and its contrast's text and tokens, which have the same attempts and fit too."""
    room = max_tokens
    while True:
        block = encode_block(tokenizer, attempts, room, render, tags)
        text = render(relabel(block.attempts, contrast)) if block.token_ids else ""
        token_ids = encode_foreign(tokenizer, text, tags) if text else []
        if len(token_ids) <= max_tokens:
            return block, text, token_ids
        room -= len(token_ids) - max_tokens
