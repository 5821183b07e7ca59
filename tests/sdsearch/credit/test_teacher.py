"""The teacher: aligned with the student token by token, blind to nothing, without gradient."""

from __future__ import annotations

import pytest
import torch

from schemas.records.hindsight import HindsightBlock
from schemas.records.rollout import Group
from schemas.settings.root import DistillationSettings, GrpoSettings, HindsightSettings, RewardSettings
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.positions import distilled_positions, turn_of_position
from sdsearch.credit.scoring import score_groups
from sdsearch.credit.teacher import TeacherSettings, compute_targets
from tests.golden.naive import divergence_from_formula, most_likely
from tests.support.builders import make_groups, make_model, make_tokenizer

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
    hindsight, model = changes.pop("hindsight", HindsightSettings()), changes.pop("model", MODEL)
    distillation = DistillationSettings(**{"top_k": 6, **changes})
    settings = TeacherSettings(1.0, 400, 8, hindsight, distillation)
    return compute_targets(model, TOKENIZER, groups, blocks, settings)


@pytest.mark.parametrize("masking", ["queries", "current_documents"])
def test_credits_are_the_models_own_numbers(masking: str) -> None:
    settings = HindsightSettings(masking=masking)
    blocks = blocks_for(GROUPS, settings)
    _, pointers, credit = targets_for(GROUPS, blocks, hindsight=settings, divergence="reverse_kl")
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
            p, q = teacher.exp(), student.exp()
            assert item.token_id == rollout.token_ids[item.position]
            assert item.student_logprob == pytest.approx(float(student[item.token_id]), rel=1e-6)
            assert item.teacher_logprob == pytest.approx(float(teacher[item.token_id]), rel=1e-6)
            assert item.jsd == pytest.approx(float(divergence_from_formula(p, q, None, "jsd", "bucket")), rel=1e-6)
            trained = divergence_from_formula(p, q, most_likely(p, 6), "reverse_kl", "bucket")
            assert item.divergence == pytest.approx(float(trained), rel=1e-6)
            assert item.teacher_entropy == pytest.approx(float(-(p * teacher).sum()), rel=1e-6)
            assert item.student_entropy == pytest.approx(float(-(q * student).sum()), rel=1e-6)
            for top, logprobs in ((item.teacher_top, teacher), (item.student_top, student)):
                assert [token.token_id for token in top] == most_likely(logprobs.exp(), 5)
                assert [token.logprob for token in top] == pytest.approx(
                    [float(logprobs[token.token_id]) for token in top], rel=1e-6
                )
                assert [token.token for token in top] == [TOKENIZER.decode([token.token_id]) for token in top]


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
    assert len(queries) == 6, "a rollout without a query token is not distilled"
    for pointer in everything:
        group = next(group for group in GROUPS if group.id == pointer.group_id)
        rollout = group.rollouts[int(pointer.rollout_id[-1])]
        assert pointer.positions == distilled_positions(rollout, "completion", "drop")
    alike = [block.model_copy(update={"homogeneous": True}) for block in blocks]
    skip = HindsightSettings(homogeneous="skip")
    assert targets_for(GROUPS, alike, hindsight=skip)[1] == []
    assert len(targets_for(GROUPS, alike)[1]) == 6


@pytest.mark.parametrize("masking", ["queries", "none"])
def test_a_query_that_was_never_sent_is_distilled_where_the_setting_asks_for_it(masking: str) -> None:
    drop, keep = (HindsightSettings(masking=masking, unsent_queries=choice) for choice in ("drop", "keep"))
    blocks = blocks_for(GROUPS, drop)
    _, _, dropped = targets_for(GROUPS, blocks, hindsight=drop)
    _, _, kept = targets_for(GROUPS, blocks, hindsight=keep)
    # The fourth rollout's fourth turn searches, when it may search no more.
    late = [item for item in kept if (item.rollout_id[-1], item.turn) == ("3", 3)]
    assert "".join(item.token for item in late).split() == ["late"] * len(GROUPS)
    assert [item for item in kept if item not in late] == dropped
    # All sampled tokens are distilled, whatever became of the query.
    pairs = [targets_for(GROUPS, blocks, hindsight=choice, positions="completion")[1] for choice in (drop, keep)]
    assert pairs[0] == pairs[1]


def test_a_reply_belongs_to_the_turn_that_asked_for_it() -> None:
    rollout = GROUPS[0].rollouts[1]
    first, second, third = rollout.turns
    sizes = [len(turn.generation.token_ids) + len(turn.observation.token_ids) for turn in (first, second)]
    expected = [0] * sizes[0] + [1] * sizes[1] + [2] * len(third.generation.token_ids)
    assert turn_of_position(rollout) == expected


def left_padded_logprobs(sequences: list[list[int]]) -> list[torch.Tensor]:
    """Each sequence's log-probabilities (T, V), all in one batch with the padding on the left."""
    longest = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([[7] * (longest - len(sequence)) + sequence for sequence in sequences])
    mask = torch.tensor([[0] * (longest - len(sequence)) + [1] * len(sequence) for sequence in sequences])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = MODEL(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    return [torch.log_softmax(row[longest - len(seq) :], -1) for row, seq in zip(logits, sequences, strict=True)]


def test_teacher_and_student_tokens_stand_one_to_one_whatever_the_padding() -> None:
    blocks = blocks_for(GROUPS, HindsightSettings())
    _, pointers, credit = targets_for(GROUPS, blocks, positions="completion")
    rollouts = [(group, rollout) for group in GROUPS for rollout in group.rollouts]
    block_of = {block.group_id: block for block in blocks}
    plain = [[*group.prompt_token_ids, *rollout.token_ids] for group, rollout in rollouts]
    hinted = []
    for (group, _), sequence in zip(rollouts, plain, strict=True):
        offset = group.block_offset
        hinted.append([*sequence[:offset], *block_of[group.id].token_ids, *sequence[offset:]])
    student, teacher = left_padded_logprobs(plain), left_padded_logprobs(hinted)
    assert {len(sequence) for sequence in plain} != {len(plain[0])}, "ragged"
    for place, ((group, rollout), pointer) in enumerate(zip(rollouts, pointers, strict=True)):
        own = [item for item in credit if item.rollout_id == rollout.id]
        assert [item.position for item in own] == list(pointer.positions) == list(rollout.completion_positions)
        assert pointer.context_shift == len(hinted[place]) - len(plain[place]) == len(block_of[group.id].token_ids)
        for item in own:
            at = len(group.prompt_token_ids) + item.position
            assert plain[place][at] == hinted[place][at + pointer.context_shift] == item.token_id
            assert item.student_logprob == pytest.approx(float(student[place][at - 1, item.token_id]), rel=1e-6)
            predicted = teacher[place][at - 1 + pointer.context_shift, item.token_id]
            assert item.teacher_logprob == pytest.approx(float(predicted), rel=1e-6)


def test_the_teacher_leaves_no_gradient() -> None:
    marks = {name: torch.full_like(parameter, 3.0) for name, parameter in MODEL.named_parameters()}
    for name, parameter in MODEL.named_parameters():
        parameter.grad = marks[name].clone()
    tensors, _, _ = targets_for(GROUPS, blocks_for(GROUPS, HindsightSettings()))
    assert not tensors.teacher_QC.requires_grad
    assert tensors.teacher_QC.shape == (len(tensors.ids_QK), 7)
    for name, parameter in MODEL.named_parameters():
        assert torch.equal(parameter.grad, marks[name]), name
    MODEL.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_distributions_are_stored_in_fp32(dtype: torch.dtype) -> None:
    tensors, _, _ = targets_for(GROUPS[:1], blocks_for(GROUPS[:1], HindsightSettings()), model=make_model().to(dtype))
    assert tensors.teacher_QC.dtype == torch.float32
    torch.testing.assert_close(tensors.teacher_QC.exp().sum(1), torch.ones(len(tensors.ids_QK)), rtol=1e-6, atol=0)
