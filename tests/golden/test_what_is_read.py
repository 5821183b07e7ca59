"""What the policy did not sample is not trained on: no gradient reaches it, whatever stands there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from schemas.records.rollout import Group
from schemas.settings.root import Settings
from sdsearch.model.batching import TokenBatch, microbatches
from sdsearch.model.policy import backbone
from tests.golden.cases import Case, make_case, make_settings
from tests.support.builders import make_groups, make_tokenizer


def predicts_sampled(case: Case) -> list[Tensor]:
    """For each micro-batch a mask (1, T): the positions whose next token the policy sampled, from the records.

    A context's last position predicts the first token of every one of its rollouts.
    """
    rollout_of = {rollout.id: rollout for group in case.naive.groups for rollout in group.rollouts}
    sequences = [item.rollout.sequence for item in case.scored]
    masks = []
    for rows in microbatches(sequences, case.settings.update.max_tokens_per_microbatch):
        layout = TokenBatch.of([sequences[row] for row in rows], torch.device("cpu")).layout
        contexts = list(dict.fromkeys(sequences[row].context_ids for row in rows))
        mask: list[bool] = []
        for tree, context in zip(layout.trees, contexts, strict=True):
            mask += [False] * tree.num_context
            last = len(mask) - 1
            for row in (row for row in rows if sequences[row].context_ids == context):
                spans = rollout_of[case.scored[row].rollout.rollout_id].spans()
                author = [who == "policy" for who, tokens in spans for _ in tokens]
                mask[last] |= author[0]
                mask += author[1:]
        masks.append(torch.tensor([mask]))
    return masks


def watch(case: Case, change: Callable[[Tensor, Tensor], Tensor]) -> tuple[Case, list[Tensor]]:
    """Let `change(hidden, mask)` act on each forward's hidden states; return them as the losses left them."""
    masks = predicts_sampled(case)
    seen: list[Tensor] = []

    def hook(module: nn.Module, arguments: object, output: object) -> object:
        output.last_hidden_state = change(output.last_hidden_state, masks[len(seen)])
        output.last_hidden_state.retain_grad()
        seen.append(output.last_hidden_state)
        return output

    handle = backbone(case.policy).register_forward_hook(hook)
    try:
        case.ours()
    finally:
        handle.remove()
    assert len(seen) == len(masks)
    return case, seen


def both_groups() -> list[Group]:
    return make_groups(make_tokenizer(), num_groups=2)


SETTINGS: list[Settings] = [
    make_settings(update={"max_tokens_per_microbatch": 400}),
    make_settings(distillation={"positions": "completion"}, update={"max_tokens_per_microbatch": 400}),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["query", "completion"])
def test_gradient_reaches_the_predictions_of_sampled_tokens_alone(settings: Settings) -> None:
    case, seen = watch(make_case(settings, both_groups()), lambda hidden, mask: hidden * 1)
    for hidden, mask in zip(seen, predicts_sampled(case), strict=True):
        assert (~mask).any()
        touched = (hidden.grad != 0).any(dim=-1)
        assert torch.equal(touched, mask)


@pytest.mark.parametrize("value", [1e30, float("inf"), float("nan")])
def test_what_stands_at_unread_positions_does_not_matter(value: float) -> None:
    """Their ratio would overflow; a mask multiplied in after the exponential would give 0 times infinity."""
    plain = make_case(SETTINGS[0], both_groups())
    terms, gradients = plain.ours()
    case, _ = watch(plain, lambda hidden, mask: torch.where(mask[..., None], hidden, value))
    for name, gradient in gradients.items():
        assert torch.equal(dict(case.policy.named_parameters())[name].grad, gradient), name
    assert torch.isfinite(terms.policy_loss)


def test_a_rollout_without_advantage_moves_nothing() -> None:
    """Without KL and distillation, equal rewards leave the weights alone, exactly."""
    settings = make_settings(grpo={"kl_coefficient": 0.0}, distillation={"enabled": False})
    texts = [("<search> river </search>", "<answer> tree </answer>"), ("<answer> tree </answer>",)]
    case = make_case(settings, make_groups(make_tokenizer(), num_groups=1, texts=texts), alpha=0.0)
    terms, gradients = case.ours()
    assert float(terms.policy_loss) == 0.0
    assert all(not gradient.any() for gradient in gradients.values())


def test_the_sampled_log_probability_of_each_token_is_its_own() -> None:
    """One token's stored log-probability moves the loss through that token alone."""
    case = make_case(make_settings(grpo={"clip_low": 0.99, "clip_high": 50.0, "importance_cap": 50.0}), moved=0.0)
    terms, _ = case.ours()
    item = case.scored[1]
    raised = item.sampled_N.clone()
    raised[3] -= 0.01
    scored = [dataclasses.replace(other, sampled_N=raised) if other is item else other for other in case.scored]
    changed, _ = dataclasses.replace(case, scored=scored).ours()
    position = item.rollout.sequence.reads[3]
    rollout = case.naive.groups[0].rollouts[1]
    logprobs = case.naive.fixed(case.policy, case.naive.groups[0].prompt_token_ids, rollout)
    ratio = torch.exp(logprobs[position, rollout.token_ids[position]] - item.sampled_N[3])
    tokens = sum(len(other.sampled_N) for other in case.scored)
    expected = -ratio * (torch.exp(torch.tensor(0.01)) - 1) * item.rollout.advantage / tokens
    assert float(changed.policy_loss - terms.policy_loss) == pytest.approx(float(expected), rel=1e-3)
