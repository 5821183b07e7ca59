"""The contrast: labels inverted or removed, what it leaves of the teacher by hand, and what cancels out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from schemas.records.hindsight import HindsightAttempt, HindsightBlock
from schemas.settings.root import GrpoSettings, HindsightSettings, RewardSettings
from sdsearch.credit.contrast import contrast_target, encode_pair, relabel
from sdsearch.credit.hindsight import build_blocks
from sdsearch.credit.scoring import score_groups
from sdsearch.protocol.tokens import TAGS
from tests.golden.cases import assert_same_loss, make_case, make_settings
from tests.golden.naive import divergence_from_formula
from tests.sdsearch.credit.test_teacher import GROUPS, MODEL, TOKENIZER, blocks_for, targets_for

CONTRASTS = ["flipped", "unlabelled"]


def test_the_target_against_probabilities_in_numpy() -> None:
    generator = np.random.default_rng(0)
    teacher, contrast, student = (generator.dirichlet(np.ones(9), size=5) for _ in range(3))
    expected = student * teacher / contrast
    expected /= expected.sum(axis=1, keepdims=True)
    target = contrast_target(*(torch.tensor(np.log(p)) for p in (teacher, contrast, student)))
    np.testing.assert_allclose(target.exp().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_only_the_labels_of_the_block_differ(contrast: str) -> None:
    for block in blocks_for(GROUPS, HindsightSettings(contrast=contrast)):
        other = {"CORRECT": "INCORRECT", "INCORRECT": "CORRECT"}
        lines = []
        for line in block.text.splitlines(keepends=True):
            if line.startswith("Attempt"):
                label = line[line.index("(") + 1 : line.index(")")]
                line = line.replace(f"({label})", f"({other[label]})" if contrast == "flipped" else "#").replace(
                    " #", ""
                )
            lines.append(line)
        assert block.contrast_text == "".join(lines) != block.text
        assert TOKENIZER.decode(list(block.contrast_token_ids)) == block.contrast_text
    for block in blocks_for(GROUPS, HindsightSettings()):
        assert (block.contrast_text, block.contrast_token_ids) == ("", ())


def test_an_attempt_without_a_label_gets_none() -> None:
    attempt = HindsightAttempt(rollout_index=0, label=None, contents=("x",))
    assert relabel([attempt], "flipped") == [attempt]


def test_both_blocks_show_the_same_and_fit() -> None:
    """Inverted labels may take more tokens than the block's own; then both lose as much."""
    attempts = [
        HindsightAttempt(rollout_index=place, label="CORRECT", contents=(" ".join(["river"] * 60),))
        for place in (0, 1, 2)
    ]

    def render(shown: Sequence[HindsightAttempt]) -> str:
        mark = {"CORRECT": "yes", "INCORRECT": "no no no no no"}
        return "".join(f"{mark[attempt.label or 'CORRECT']} {attempt.contents[0]} end\n" for attempt in shown)

    for room in range(40, 130):
        block, text, token_ids = encode_pair(TOKENIZER, attempts, room, render, TAGS, "flipped")
        assert len(block.token_ids) < len(token_ids) <= room
        assert len(token_ids) > room - 20, "no more is lost than has to be"
        assert text.replace("no no no no no", "yes") == block.text
        assert block.text.count("…") == len(block.attempts) > 0
    assert encode_pair(TOKENIZER, attempts, 2, render, TAGS, "flipped")[1:] == ("", [])


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_what_the_teacher_says_against_three_passes_of_the_plain_model(contrast: str) -> None:
    settings = HindsightSettings(contrast=contrast)
    blocks = blocks_for(GROUPS, settings)
    tensors, pointers, credit = targets_for(GROUPS, blocks, hindsight=settings, support="full")
    place = 0
    for group, block in zip(GROUPS, blocks, strict=True):
        for item in (item for item in credit if item.group_id == group.id):
            prompt, offset = list(group.prompt_token_ids), group.block_offset
            before = list(group.rollouts[int(item.rollout_id[-1])].token_ids[: item.position])
            contexts = [
                [*prompt[:offset], *shown, *prompt[offset:], *before]
                for shown in ((), block.token_ids, block.contrast_token_ids)
            ]
            with torch.no_grad():
                student, teacher, other = (
                    torch.softmax(MODEL(input_ids=torch.tensor([ids])).logits[0, -1], -1) for ids in contexts
                )
            p = student * teacher / other
            p = p / p.sum()
            assert item.teacher_logprob == pytest.approx(float(p[item.token_id].log()), rel=1e-6)
            assert item.student_logprob == pytest.approx(float(student[item.token_id].log()), rel=1e-6)
            assert item.jsd == pytest.approx(
                float(divergence_from_formula(p, student, None, "jsd", "bucket")), rel=1e-5
            )
            assert item.teacher_entropy == pytest.approx(float(-(p * p.log()).sum()), rel=1e-6)
            torch.testing.assert_close(tensors.teacher_QC[place].double().exp(), p, rtol=1e-5, atol=1e-8)
            place += 1
    assert place == len(credit) > 20
    before = targets_for(GROUPS, blocks_for(GROUPS, HindsightSettings()))[1]
    of_group = {block.group_id: block for block in blocks}
    for ours, plain in zip(pointers, before, strict=True):
        block = of_group[ours.group_id]
        student = (plain.num_tokens - len(block.token_ids)) // 2
        assert ours.num_tokens - plain.num_tokens == student + len(block.contrast_token_ids), (
            "the third pass is counted"
        )


def test_what_any_block_does_cancels_out() -> None:
    """A contrast that says what the block says leaves the student: nothing is learnt."""
    blocks = [
        block.model_copy(update={"contrast_token_ids": block.token_ids})
        for block in blocks_for(GROUPS, HindsightSettings())
    ]
    _, _, credit = targets_for(GROUPS, blocks)
    assert max(abs(item.jsd) for item in credit) < 1e-12
    assert [c.teacher_logprob for c in credit] == pytest.approx([c.student_logprob for c in credit])
    assert max(item.jsd for item in targets_for(GROUPS, blocks_for(GROUPS, HindsightSettings()))[2]) > 1e-4


def homogeneous_block(label: str) -> HindsightBlock:
    group = GROUPS[0]
    scores = [
        score.model_copy(update={"f1": float(label == "CORRECT")})
        for score in score_groups([group], RewardSettings(), GrpoSettings())
    ]
    settings = HindsightSettings(contrast="flipped")
    (block,) = build_blocks(group, scores, settings=settings, seed=0, tokenizer=TOKENIZER, max_context_tokens=512)
    return block


def test_groups_whose_outcomes_are_all_equal_have_opposite_signals() -> None:
    """All CORRECT and all INCORRECT: each is the other's contrast, so one target is S r, the other S / r."""
    right, wrong = homogeneous_block("CORRECT"), homogeneous_block("INCORRECT")
    assert right.homogeneous
    assert right.contrast_token_ids == wrong.token_ids
    nothing = right.model_copy(update={"contrast_token_ids": right.token_ids})
    blocks = (right, wrong, nothing)
    up, down, student = (targets_for([GROUPS[0]], [block], support="full") for block in blocks)
    ratios = up[0].teacher_QC.double() + down[0].teacher_QC - 2 * student[0].teacher_QC
    torch.testing.assert_close(ratios, ratios[:, :1].expand_as(ratios), rtol=0, atol=1e-4)
    assert min(item.jsd for item in up[2]) > 1e-6, "a signal at every query token"


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("divergence", ["jsd", "reverse_kl"])
def test_the_objective_and_its_gradient_against_the_naive_one(contrast: str, divergence: str) -> None:
    settings = make_settings(hindsight={"contrast": contrast}, distillation={"divergence": divergence})
    assert_same_loss(make_case(settings))
