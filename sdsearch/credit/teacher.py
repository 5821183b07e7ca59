"""The teacher: the policy that sampled the group, shown the hindsight block, without gradient (paper, 3.2-3.3).

Its weights may be others (distillation.teacher): the starting weights, or a moving average of the policies. Then it
differs from the student by more than the block, and draws it back to what it was, as a KL does.
The teacher's tokens after the block are the student's own; its position is the student's plus the block's length.
Shapes: `Q` distilled tokens, `V` vocabulary, `K` support, `N` read positions of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import assert_never

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from schemas.errors import UserError
from schemas.records.hindsight import HindsightBlock
from schemas.records.rollout import Group
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.settings.root import DistillationSettings, HindsightSettings, Settings
from sdsearch.credit.contrast import contrast_target
from sdsearch.credit.divergence import entropy, jsd, open_divergence, truncate
from sdsearch.credit.gates import gated, open_gate
from sdsearch.credit.positions import turn_of_position
from sdsearch.credit.readings import Readings, Told, TopTokens, credit_of, told
from sdsearch.credit.teacher_views import View, by_rollout, views_of
from sdsearch.model.balance import own_sequences
from sdsearch.model.dropout import without_randomness
from sdsearch.model.pass_settings import PassSettings
from sdsearch.model.passes import hidden_by_sequence
from sdsearch.model.policy import head, output_layer, read_logprobs
from sdsearch.model.ranks import merged
from sdsearch.model.sharding import together
from sdsearch.protocol.tokens import decode


@dataclass(frozen=True)
class TargetTensors:
    """The teacher's stored distributions, a row a distilled token, rollouts in order."""

    ids_QK: Tensor  # int64
    teacher_QC: Tensor  # fp32 log-probabilities over the support, then of its tail when there is one


TeacherWeights = Callable[[], AbstractContextManager[nn.Module]]
"""Opens a model that has the teacher's weights for as long as the context lasts."""


@dataclass(frozen=True)
class TeacherSettings(PassSettings):
    """What the passes of the teacher and the student read of the settings."""

    hindsight: HindsightSettings
    distillation: DistillationSettings

    @classmethod
    def of(cls, settings: Settings) -> TeacherSettings:
        """Take them from a run's settings."""
        return cls(
            *cls.of_passes(settings),
            hindsight=settings.hindsight,
            distillation=settings.distillation,
        )


def no_targets() -> TargetTensors:
    """Return the distributions of no token."""
    return TargetTensors(torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1))


def check_support(model: nn.Module, distillation: DistillationSettings) -> None:
    """Raise UserError when the support would hold more tokens than the policy's vocabulary."""
    vocabulary = output_layer(model).weight.shape[0]
    if distillation.enabled and distillation.support != "full" and distillation.top_k > vocabulary:
        raise UserError(
            f"distillation.top_k is {distillation.top_k}, the policy's vocabulary has {vocabulary} tokens; "
            "lower top_k, or set distillation.support = 'full'"
        )


@torch.no_grad()
def compute_targets(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[Group],
    blocks: Sequence[HindsightBlock],
    settings: TeacherSettings,
    teacher: TeacherWeights | None = None,
) -> tuple[TargetTensors, list[TeacherTargets], list[QueryCredit]]:
    """Run the teacher and the student over the distilled tokens of all rollouts.

    `model` is the student; the teacher has its weights where no others are given (paper).
    Returns the distributions to store, one pointer a rollout that has such tokens, and one credit a token.
    Groups whose labels are all equal are left out when `hindsight.homogeneous` says so, as are empty blocks.
    Raises UserError when the support is larger than the vocabulary.
    """
    check_support(model, settings.distillation)
    opened: TeacherWeights = teacher or (lambda: nullcontext(model))
    views = list(views_of(groups, blocks, settings.hindsight, settings.distillation))
    readings = _read_views(model, opened, views, settings)
    pointers: list[TeacherTargets] = []
    credits: list[QueryCredit] = []
    row, text_of = 0, cache(lambda token: decode(tokenizer, [token]))
    chosen = open_gate(settings.distillation)
    gate = None if settings.distillation.gate == "none" else chosen
    for members in by_rollout(views):
        rows = [readings[i] for i in members]
        own = [views[i] for i in members]
        said = told(rows)
        positions = tuple(position for view in own for position in view.positions)
        credits.extend(credit_of(own[0].rollout, positions, turn_of_position(own[0].rollout), said, text_of))
        pointer = _pointer(own, positions, said, row, rows[0].ids_QK.shape[1])
        pointers.append(gated(pointer, said, turn_of_position(own[0].rollout), gate, own[0].outcome))
        row += len(positions)
    return _stack(readings), pointers, credits


def _read_views(
    model: nn.Module, teacher: TeacherWeights, views: Sequence[View], settings: TeacherSettings
) -> list[Readings]:
    """Run all passes over the views and compare them; each rank does a part, and all return the whole."""
    max_tokens = settings.max_tokens_per_microbatch
    numbers = own_sequences([view.teacher for view in views], max_tokens)
    own = [views[number] for number in numbers]
    contrasts: Sequence[Tensor | None] = [None] * len(own)
    with without_randomness(model):
        students = hidden_by_sequence(model, [view.student for view in own], max_tokens)
        with teacher() as teaching:
            teachers = hidden_by_sequence(teaching, [view.teacher for view in own], max_tokens)
            if views and views[0].block.contrast_token_ids:
                contrasts = hidden_by_sequence(teaching, [view.contrast for view in own], max_tokens)

    def compare() -> list[Readings]:
        return [
            _compare(model, teacher, student, (taught, contrast), view.student.targets, settings)
            for view, student, taught, contrast in zip(own, students, teachers, contrasts, strict=True)
        ]

    readings = together(model, partial(together, teaching, compare))
    found = merged(dict(zip(numbers, (each.sendable() for each in readings), strict=True)))
    return [found[number] for number in range(len(views))]


def _compare(
    model: nn.Module,
    teacher: TeacherWeights,
    student_QD: Tensor,
    taught: tuple[Tensor, Tensor | None],
    targets: Sequence[int],
    settings: TeacherSettings,
) -> Readings:
    """Read both distributions at each token; the logits of `head_chunk` tokens exist at a time.

    taught: the hidden states (Q, D) of the teacher, and of its contrast where there is one.
    """
    teacher_QD, contrast_QD = taught
    distillation, head_chunk = settings.distillation, settings.head_chunk
    targets_Q1 = torch.tensor(targets, device=student_QD.device)[:, None]
    measure = open_divergence(distillation)
    parts = []
    for start in range(0, len(targets), head_chunk):
        part = slice(start, start + head_chunk)
        student_QV = read_logprobs(head(model), student_QD[part], settings.temperature)
        with teacher() as teaching:  # Tuning may change the output layer too.
            teacher_QV = read_logprobs(head(teaching), teacher_QD[part], settings.temperature)
            if contrast_QD is not None:
                contrast_QV = read_logprobs(head(teaching), contrast_QD[part], settings.temperature)
                teacher_QV = contrast_target(teacher_QV, contrast_QV, student_QV)
        ids_QK = _support(teacher_QV, student_QV, distillation)
        teacher_QC, student_QC = (truncate(full_QV, ids_QK, distillation.tail) for full_QV in (teacher_QV, student_QV))
        numbers = [
            teacher_QV.gather(1, targets_Q1[part])[:, 0],
            student_QV.gather(1, targets_Q1[part])[:, 0],
            jsd(teacher_QV, student_QV),
            measure(teacher_QC, student_QC),
            entropy(teacher_QV),
            entropy(student_QV),
        ]
        tops = (*TopTokens.of(teacher_QV), *TopTokens.of(student_QV))
        parts.append((ids_QK, teacher_QC, torch.stack(numbers, dim=1), *tops))
    return Readings(*(torch.cat(parts) for parts in zip(*parts, strict=True)))


def _support(teacher_QV: Tensor, student_QV: Tensor, distillation: DistillationSettings) -> Tensor:
    """Return the ids (Q, K) of the compared tokens; 'student' is the sampling policy's top-k."""
    vocabulary = teacher_QV.shape[1]
    match distillation.support:
        case "full":
            return torch.arange(vocabulary, device=teacher_QV.device).expand(len(teacher_QV), -1)
        case "teacher":
            chosen_QV = teacher_QV
        case "student":
            chosen_QV = student_QV
        case unknown:
            assert_never(unknown)
    return chosen_QV.topk(distillation.top_k, dim=1).indices


def _stack(readings: Sequence[Readings]) -> TargetTensors:
    if not readings:
        return no_targets()
    ids, teacher = zip(*((each.ids_QK, each.teacher_QC) for each in readings), strict=True)
    return TargetTensors(torch.cat(ids).cpu(), torch.cat(teacher).cpu())


def _pointer(
    views: Sequence[View], positions: tuple[int, ...], said: Sequence[Told], row: int, support: int
) -> TeacherTargets:
    return TeacherTargets(
        rollout_id=views[0].rollout.id,
        group_id=views[0].group.id,
        row_start=row,
        num_rows=len(positions),
        positions=positions,
        support_size=support,
        context_shift=len(views[0].block.token_ids),
        num_tokens=sum(view.num_tokens for view in views),
        mean_jsd=sum(each.numbers[2] for each in said) / len(said),
    )
