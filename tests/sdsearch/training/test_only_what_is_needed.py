"""Only what a loss reads is computed: the head at read positions, in chunks; log-softmax in fp32; no pass unread."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from schemas.records.rollout import Group
from schemas.settings.root import Settings
from sdsearch.credit.scoring import score_groups
from sdsearch.credit.teacher import TargetTensors
from sdsearch.model.batching import TokenSequence
from sdsearch.model.policy import backbone, causal_lm, head, output_layer, read_logprobs
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import TrainingRollout
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.optimiser import make_optimiser
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import update_policy
from tests.golden.cases import make_blocks, make_settings, teach
from tests.support.builders import make_groups, make_model, make_tokenizer

CHUNK = 5


class Watch:
    """Counts what a model's two halves are given, and refuses the forward that makes all logits at once."""

    def __init__(self, model: nn.Module) -> None:
        self.head_rows: list[int] = []
        self.num_forwards = 0
        self.num_tokens = 0
        output_layer(model).register_forward_pre_hook(self._at_head)
        backbone(model).register_forward_pre_hook(self._at_backbone, with_kwargs=True)
        causal_lm(model).register_forward_pre_hook(self._at_whole, with_kwargs=True)

    def _at_head(self, module: nn.Module, arguments: tuple[torch.Tensor]) -> None:
        (hidden_1nD,) = arguments
        assert len(hidden_1nD) == 1, "positions, not sequences"
        self.head_rows.append(hidden_1nD.shape[1])

    def _at_backbone(self, module: nn.Module, arguments: Any, options: Any) -> None:
        self.num_forwards += 1
        self.num_tokens += options["input_ids"].numel()

    def _at_whole(self, module: nn.Module, arguments: Any, options: Any) -> None:
        assert set(options) == {"inputs_embeds"}, "the whole model's forward makes (B, T, V) logits"


def settings_of(**sections: Any) -> Settings:
    update = {"head_chunk": CHUNK, "rollouts_per_step": 10, "gradient_parts_every": 0}
    return make_settings(update={**update, **sections.pop("update", {})}, **sections)


def taught(settings: Settings, model: nn.Module) -> tuple[list[Group], list[TrainingRollout]]:
    groups = make_groups(make_tokenizer())
    scores = score_groups(groups, settings.reward, settings.grpo)
    tensors, pointers, _ = teach(model, groups, make_blocks(make_tokenizer(), groups, scores, settings), settings)
    return groups, training_rollouts(groups, scores, pointers, tensors)


def num_reads(sequences: Sequence[TokenSequence]) -> int:
    return sum(len(sequence.reads) for sequence in sequences)


def update(settings: Settings, rollouts: Sequence[TrainingRollout], iteration: int = 1) -> tuple[Watch, Watch]:
    model, reference = make_model(seed=1), make_model(seed=2)
    watched = Watch(model), Watch(reference)
    optimiser = make_optimiser(model, settings.update)
    list(update_policy(model, reference, optimiser, rollouts, settings, iteration=iteration, steps_done=0))
    return watched


def test_student_and_reference_use_the_head_at_sampled_tokens_alone() -> None:
    settings = settings_of()
    _, rollouts = taught(settings, make_model(seed=1))
    sequences = [rollout.sequence for rollout in rollouts]
    assert num_reads(sequences) < sum(sequence.num_tokens for sequence in sequences) / 2, "most tokens are not read"
    student, reference = update(settings, rollouts)
    assert sum(reference.head_rows) == num_reads(sequences)
    assert sum(student.head_rows) == 2 * num_reads(sequences), "each chunk again in the backward pass"
    assert max(*student.head_rows, *reference.head_rows) == CHUNK


def test_one_chunk_is_not_computed_twice() -> None:
    settings = settings_of(update={"head_chunk": 100_000})
    _, rollouts = taught(settings, make_model(seed=1))
    student, _ = update(settings, rollouts)
    assert sum(student.head_rows) == num_reads([rollout.sequence for rollout in rollouts])


@pytest.mark.parametrize("positions", ["query", "completion"])
def test_teacher_and_student_use_the_head_at_distilled_tokens_alone(positions: str) -> None:
    settings = settings_of(distillation={"positions": positions})
    model = make_model(seed=1)
    watch = Watch(model)
    _, rollouts = taught(settings, model)
    num_distilled = sum(len(rollout.distilled) for rollout in rollouts)
    assert num_distilled > 20
    assert sum(watch.head_rows) == 2 * num_distilled
    assert max(watch.head_rows) <= CHUNK


def test_teacher_and_student_end_at_the_last_query_token_and_read_a_prompt_once() -> None:
    settings = settings_of()
    model, tokenizer = make_model(seed=1), make_tokenizer()
    groups = make_groups(tokenizer)
    blocks = make_blocks(tokenizer, groups, score_groups(groups, settings.reward, settings.grpo), settings)
    watch = Watch(model)
    teach(model, groups, blocks, settings)
    expected = 0
    for group, block in zip(groups, blocks, strict=True):
        searching = [rollout for rollout in group.rollouts if rollout.query_positions]
        assert 0 < len(searching) < len(group.rollouts), "one has no query"
        before_last = [rollout.query_positions[-1] for rollout in searching]
        assert sum(before_last) < sum(len(rollout.token_ids) for rollout in searching) / 1.5, "documents follow"
        expected += 2 * (len(group.prompt_token_ids) + sum(before_last)) + len(block.token_ids)
    assert watch.num_tokens == expected


@pytest.mark.parametrize(("old_logprobs", "steps", "passes"), [("sampler", 2, 2), ("trainer", 1, 1), ("trainer", 2, 3)])
def test_a_pass_that_nothing_reads_is_not_made(old_logprobs: str, steps: int, passes: int) -> None:
    settings = settings_of(
        grpo={"kl_coefficient": 0.0, "old_logprobs": old_logprobs}, update={"rollouts_per_step": 10 // steps}
    )
    _, rollouts = taught(settings, make_model(seed=1))
    student, reference = update(settings, rollouts)
    assert reference.num_forwards == 0, "no reference at KL coefficient 0"
    assert student.num_forwards == passes, "the trainer's own pass only where the weights move before a rollout's step"


def test_rollouts_without_gradient_are_not_forwarded() -> None:
    """Advantage 0, no KL, nothing distilled: the others' gradient is the whole step's, normaliser and moments too."""
    settings = settings_of(grpo={"kl_coefficient": 0.0}, distillation={"enabled": False})
    _, rollouts = taught(settings_of(), make_model(seed=1))
    idle = [dataclasses.replace(rollout, advantage=0.0 if n % 2 else 1.0) for n, rollout in enumerate(rollouts)]
    watched = {}
    for kl in (0.0, 1e-30):  # a coefficient too small to matter makes every rollout be read
        model = make_model(seed=1)
        watch = Watch(model)
        of_kl = settings.model_copy(update={"grpo": settings.grpo.model_copy(update={"kl_coefficient": kl})})
        optimiser = make_optimiser(model, settings.update)
        (report,) = update_policy(model, make_model(seed=2), optimiser, idle, of_kl, iteration=1, steps_done=0)
        watched[kl] = (report, watch, model)
    (some, read, policy), (every, all_read, other) = watched.values()
    kept = num_reads([rollout.sequence for rollout in idle if rollout.advantage])
    assert 0 < kept == some.num_read_tokens < every.num_read_tokens == some.num_completion_tokens
    assert sum(read.head_rows) == 2 * kept < sum(all_read.head_rows), "each chunk again in the backward pass"
    assert some.policy_loss == pytest.approx(every.policy_loss, rel=1e-6)
    assert some.grad_norm == pytest.approx(every.grad_norm, rel=1e-5)
    assert some.entropy != every.entropy
    for (name, parameter), twin in zip(policy.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, twin, rtol=0, atol=1e-6, msg=name)


def test_a_step_without_any_gradient_still_moves_the_moments() -> None:
    """AdamW's moments decay and its weights go on moving, as with a gradient of zeros."""
    settings = settings_of(grpo={"kl_coefficient": 0.0}, distillation={"enabled": False})
    _, rollouts = taught(settings_of(), make_model(seed=1))
    model = make_model(seed=1)
    watch = Watch(model)
    optimiser = make_optimiser(model, settings.update)
    for step, advantage in enumerate((1.0, 0.0)):
        given = [dataclasses.replace(rollout, advantage=advantage) for rollout in rollouts]
        before = [state["exp_avg"].clone() for state in optimiser.state.values()]
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        (report,) = update_policy(model, None, optimiser, given, settings, iteration=1, steps_done=step)
    assert watch.num_forwards == 1
    assert (report.num_read_tokens, report.grad_norm, report.loss) == (0, 0.0, 0.0)
    assert {report.entropy, report.ratio_max, report.sampler_kl, report.clip_share} == {None}
    for state, moment in zip(optimiser.state.values(), before, strict=True):
        assert float(state["step"]) == 2
        torch.testing.assert_close(state["exp_avg"], settings.update.betas[0] * moment)
    assert any(not torch.equal(now, then) for now, then in zip(model.parameters(), weights, strict=True))


def test_while_alpha_is_zero_targets_are_not_read() -> None:
    """Stored targets that would give NaN change nothing in the warm-up."""
    settings = settings_of(distillation={"warmup_iterations": 1})
    _, rollouts = taught(settings, make_model(seed=1))
    broken = [
        TrainingRollout(
            r.rollout_id, r.sequence, r.sampled_logprobs, r.advantage, r.distilled, r.ids_QK, r.teacher_QC * torch.nan
        )
        for r in rollouts
    ]
    model = make_model(seed=1)
    optimiser = make_optimiser(model, settings.update)
    (report,) = update_policy(model, make_model(seed=2), optimiser, broken, settings, iteration=1, steps_done=0)
    assert (report.alpha, report.sd_loss, report.num_distilled_tokens) == (0.0, 0.0, 0)


def test_without_blocks_the_teacher_stage_makes_no_pass() -> None:
    model = make_model()
    watch = Watch(model)
    tensors, pointers, credit = teach(model, [], [], settings_of())
    assert (len(tensors.ids_QK), pointers, credit, watch.num_forwards) == (0, [], [], 0)


def test_log_softmax_is_fp32_under_a_bfloat16_model() -> None:
    """Sixteen bits would leave errors of a hundredth in each log-probability."""
    model = make_model().to(torch.bfloat16)
    hidden_ND = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    logprobs_NV = read_logprobs(head(model), hidden_ND, 0.7)
    assert logprobs_NV.dtype == torch.float32
    logits_NV = head(model)(hidden_ND).double() / 0.7
    torch.testing.assert_close(logprobs_NV.double(), logits_NV.log_softmax(1), rtol=0, atol=1e-5)
    settings = settings_of()
    groups = make_groups(make_tokenizer())
    scores = score_groups(groups, settings.reward, settings.grpo)
    stored: TargetTensors = teach(model, groups, make_blocks(make_tokenizer(), groups, scores, settings), settings)[0]
    assert stored.teacher_QC.dtype == torch.float32
    torch.testing.assert_close(stored.teacher_QC.exp().sum(1), torch.ones(len(stored.ids_QK)), rtol=0, atol=1e-5)
    rollouts = training_rollouts(groups, scores, [], stored)
    (scored, *_) = score_once(model, model.requires_grad_(False), rollouts, LossSettings.of(settings))
    assert scored.reference_N is not None
    assert scored.reference_N.dtype == torch.float32
