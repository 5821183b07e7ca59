"""The teacher: aligned with the student token by token, blind to nothing, without gradient."""

from __future__ import annotations

import pytest
import torch

from schemas.config import DistillationSettings, GrpoSettings, HindsightSettings, RewardSettings
from schemas.hindsight import HindsightBlock
from schemas.rollout import Group
from sdsearch.hindsight import build_blocks
from sdsearch.scoring import score_groups
from sdsearch.teacher import compute_targets, distilled_positions
from tests.builders import make_groups, make_model, make_tokenizer

TOKENIZER = make_tokenizer()
MODEL = make_model().double()
GROUPS = make_groups(TOKENIZER)


def blocks_for(groups: list[Group], settings: HindsightSettings) -> list[HindsightBlock]:
    blocks = []
    for group in groups:
        scores = score_groups([group], RewardSettings(), GrpoSettings())
        blocks += build_blocks(group, scores, settings=settings, seed=0, tokenizer=TOKENIZER, max_context_tokens=512)
    return blocks


def targets_for(groups: list[Group], blocks: list[HindsightBlock], **changes: object) -> tuple:
    hindsight = changes.pop("hindsight", HindsightSettings())
    return compute_targets(
        MODEL,
        TOKENIZER,
        groups,
        blocks,
        hindsight=hindsight,
        distillation=DistillationSettings(**{"top_k": 6, **changes}),
        temperature=1.0,
        max_tokens=400,
        head_chunk=8,
    )


@pytest.mark.parametrize("masking", ["queries", "current_documents"])
def test_credits_are_the_models_own_numbers(masking: str) -> None:
    settings = HindsightSettings(masking=masking)
    blocks = blocks_for(GROUPS, settings)
    _, pointers, credit = targets_for(GROUPS, blocks, hindsight=settings)
    assert sum(pointer.num_rows for pointer in pointers) == len(credit) > 20
    for group in GROUPS:
        for item in (item for item in credit if item.group_id == group.id):
            rollout = group.rollouts[int(item.rollout_id[-1])]
            (block,) = [
                block
                for block in blocks
                if block.group_id == group.id
                and block.focal_rollout in (None, rollout.index)
                and block.focal_turn in (None, item.turn)
            ]
            prompt, offset = list(group.prompt_token_ids), group.block_offset
            before = list(rollout.token_ids[: item.position])
            with torch.no_grad():
                plain = MODEL(input_ids=torch.tensor([prompt + before])).logits[0, -1]
                hinted = [*prompt[:offset], *block.token_ids, *prompt[offset:], *before]
                shown = MODEL(input_ids=torch.tensor([hinted])).logits[0, -1]
            student, teacher = torch.log_softmax(plain, -1), torch.log_softmax(shown, -1)
            assert item.token_id == rollout.token_ids[item.position]
            assert item.student_logprob == pytest.approx(float(student[item.token_id]), abs=1e-4)
            assert item.teacher_logprob == pytest.approx(float(teacher[item.token_id]), abs=1e-4)
            p, q = teacher.exp(), student.exp()
            m = (p + q) / 2
            jsd = float((p * (p / m).log()).sum() / 2 + (q * (q / m).log()).sum() / 2)
            assert item.jsd == pytest.approx(jsd, abs=1e-5)


def test_without_a_difference_in_context_there_is_no_divergence() -> None:
    blocks = blocks_for(GROUPS, HindsightSettings())
    # Header tokens alone would differ; a block of no tokens at all is the student's context.
    _, pointers, credit = targets_for(GROUPS, [b.model_copy(update={"token_ids": ()}) for b in blocks])
    assert (pointers, credit) == ([], []), "an empty block teaches nothing and costs no pass"


def test_the_teacher_sees_the_documents() -> None:
    settings = HindsightSettings()
    _, _, credit = targets_for(GROUPS, blocks_for(GROUPS, settings))
    changed = [group.model_dump() for group in make_groups(TOKENIZER)]
    observation = changed[0]["rollouts"][1]["turns"][0]["observation"]
    middle = len(observation["token_ids"]) // 2
    ids = list(observation["token_ids"])
    ids[middle] = ids[middle] + 1
    observation["token_ids"] = tuple(ids)
    groups = [Group.model_validate(data) for data in changed]
    _, _, other = targets_for(groups, blocks_for(GROUPS, settings))
    rollout = groups[0].rollouts[1].id
    pairs = [(a, b) for a, b in zip(credit, other, strict=True) if a.rollout_id == rollout]
    assert all(a.teacher_logprob == b.teacher_logprob for a, b in pairs if a.turn == 0)
    assert all(a.teacher_logprob != b.teacher_logprob for a, b in pairs if a.turn == 1)


def test_positions_and_homogeneous_groups() -> None:
    blocks = blocks_for(GROUPS, HindsightSettings())
    _, queries, _ = targets_for(GROUPS, blocks)
    _, everything, _ = targets_for(GROUPS, blocks, positions="completion")
    assert len(everything) == 10
    assert len(queries) == 8, "a rollout without a query token is not distilled"
    for pointer in everything:
        group = next(group for group in GROUPS if group.id == pointer.group_id)
        rollout = group.rollouts[int(pointer.rollout_id[-1])]
        assert pointer.positions == distilled_positions(rollout, "completion")
    alike = [block.model_copy(update={"homogeneous": True}) for block in blocks]
    skip = HindsightSettings(homogeneous="skip")
    assert targets_for(GROUPS, alike, hindsight=skip)[1] == []
    assert len(targets_for(GROUPS, alike)[1]) == 8


def test_the_teacher_leaves_no_gradient() -> None:
    tensors, _, _ = targets_for(GROUPS, blocks_for(GROUPS, HindsightSettings()))
    assert not tensors.teacher_QC.requires_grad
    assert tensors.teacher_QC.dtype == torch.float32
    assert tensors.teacher_QC.shape == (len(tensors.ids_QK), 7)
    assert all(parameter.grad is None for parameter in MODEL.parameters())
