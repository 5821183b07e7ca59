"""Gates and the advantage form in the whole objective, against the naive one with each formula written out anew."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from schemas.errors import UserError
from schemas.records.rollout import Group, Rollout
from tests.golden.cases import Case, assert_same_loss, make_case, make_settings, teach
from tests.golden.naive import Naive, at_sampled, divergence_from_formula
from tests.support.builders import make_groups, make_tokenizer

CORRECT = {0, 2, 4}
"""Places of the rollouts whose answer shares a word with the golden one."""
GATES = ["sigmoid", "influence", "attenuation", "outcome"]


class Spoken(Naive):
    """The naive objective with what the teacher says of each token as a gate, or as a weight of the advantages."""

    def said(self, group: Group, rollout: Rollout) -> list[tuple[int, float, float]]:
        """The turn, log-ratio and exact divergence of each distilled token at the weights that sampled."""
        said = []
        starts = np.cumsum([0, *[len(t.generation.token_ids) + reply(t) for t in rollout.turns]])
        for block, position in self._lessons(group, rollout, self._query_tokens(rollout)):
            prompt, offset = group.prompt_token_ids, group.block_offset
            context = [*prompt[:offset], *block.token_ids, *prompt[offset:]]
            p = self.fixed(self.teacher, context, rollout)[position]
            q = self.fixed(self.teacher, prompt, rollout)[position]
            token = rollout.token_ids[position]
            turn = int(np.searchsorted(starts, position, side="right")) - 1
            said.append(
                (turn, float(p[token] - q[token]), float(divergence_from_formula(p.exp(), q.exp(), None, "jsd", "")))
            )
        return said

    def weights(self, group: Group, rollout: Rollout) -> list[float]:
        said, gate = self.said(group, rollout), self.settings.distillation.gate
        turns, ratios, divergences = (np.array(column) for column in zip(*said, strict=True))
        if gate == "sigmoid":
            return list(1 / (1 + np.exp(-self.settings.distillation.gate_options["sharpness"] * ratios)))
        if gate == "influence":
            return list(divergences / (divergences + divergences.mean()))
        if gate == "attenuation":
            mean = {turn: divergences[turns == turn].mean() for turn in turns}
            return [min(1.0, mean[turns.min()] / mean[turn]) for turn in turns]
        if gate == "outcome":
            wanted = 1 if rollout.index in CORRECT else -1
            return [float(np.sign(ratio) == wanted) for ratio in ratios]
        return [1.0] * len(said)

    def _divergences(self, group: Group, rollout: Rollout, policy: Tensor) -> list[Tensor]:
        if self.settings.distillation.form == "advantage":
            return []
        terms = super()._divergences(group, rollout, policy)
        return (
            [weight * term for weight, term in zip(self.weights(group, rollout), terms, strict=True)] if terms else []
        )

    def _surrogate(self, group: Group, rollout: Rollout, policy: Tensor) -> Tensor:
        if self.settings.distillation.form == "loss":
            return super()._surrogate(group, rollout, policy)
        (advantage,) = [score.advantage for score in self.scores if score.rollout_id == rollout.id]
        grpo, said = self.settings.grpo, self.said(group, rollout)
        factors = []
        for number, turn in enumerate(rollout.turns):
            gated = zip(self.weights(group, rollout), said, strict=True) if said else ()
            own = [weight * ratio for weight, (place, ratio, _) in gated if place == number]
            lean = math.tanh(sum(own) / len(own)) if own else 0.0
            factors += [1 + self.alpha * lean * np.sign(advantage)] * len(turn.generation.token_ids)
        now = at_sampled(policy, rollout)
        sampler = torch.tensor(rollout.sampled_logprobs).double()
        ratio, credit = torch.exp(now - sampler), torch.tensor(factors) * advantage
        assert float((credit * advantage).min()) >= 0, "the sign never turns"
        weight = torch.minimum(torch.tensor(1.0), grpo.importance_cap / ratio.detach())
        clipped = torch.clamp(ratio, 1 - grpo.clip_low, 1 + grpo.clip_high)
        return -(torch.min(ratio * credit, clipped * credit) * weight).sum()


def reply(turn: Any) -> int:
    return len(turn.observation.token_ids) if turn.observation else 0


def spoken_case(alpha: float = 5.0, **distillation: Any) -> Case:
    settings = make_settings(distillation={"alpha": alpha, **distillation})
    case = make_case(settings, make_groups(make_tokenizer(), num_groups=2), alpha=alpha)
    naive = Spoken(**{each.name: getattr(case.naive, each.name) for each in fields(Naive)})
    return replace(case, naive=naive)


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_weighs_each_tokens_divergence(gate: str) -> None:
    options = {"sharpness": 3.0} if gate == "sigmoid" else {}
    case = spoken_case(gate=gate, gate_options=options)
    assert_same_loss(case)
    weights = [
        w for g in case.naive.groups for r in g.rollouts if case.naive.said(g, r) for w in case.naive.weights(g, r)
    ]
    assert len({round(weight, 6) for weight in weights}) > 1, "it tells tokens apart"
    stored = [weight for rollout in case.rollouts for weight in rollout.gates]
    assert stored == pytest.approx(weights, abs=1e-4)


def test_blocks_of_an_earlier_version_are_refused_by_a_gate_and_serve_without() -> None:
    case = spoken_case(gate="sigmoid")
    earlier = [block.model_copy(update={"outcomes": ()}) for block in case.naive.blocks]
    with pytest.raises(UserError, match="made by an earlier version and does not tell outcomes"):
        teach(case.naive.teacher, case.naive.groups, earlier, case.settings)
    _, pointers, _ = teach(case.naive.teacher, case.naive.groups, earlier, make_settings())
    assert all(pointer.gates == () and pointer.turn_leanings for pointer in pointers)


@pytest.mark.parametrize("gate", ["none", "outcome"])
def test_the_advantage_form_weighs_each_turn_and_adds_no_loss(gate: str) -> None:
    case = spoken_case(alpha=0.8, form="advantage", gate=gate)
    assert_same_loss(case)
    terms, ours = case.ours()
    assert float(terms.sd_loss) == 0.0
    plain, theirs = replace(case, settings=make_settings(distillation={"alpha": 0.8})).ours()
    assert float(plain.policy_loss) != float(terms.policy_loss)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


def test_no_word_of_the_teacher_is_the_plain_advantage() -> None:
    """In the warm-up, and where nothing is distilled, the policy loss is GRPO's, bit for bit."""
    case = spoken_case(alpha=0.8, form="advantage")
    silent = replace(case, naive=replace(case.naive, alpha=0.0))
    grpo, _ = silent.ours()
    dumb = [replace(s, rollout=replace(s.rollout, leanings=())) for s in case.scored]
    told, _ = replace(case, scored=dumb).ours()
    assert torch.equal(grpo.policy_loss, told.policy_loss)


@pytest.mark.parametrize(
    ("hindsight", "correct"), [({"rho": 0.6}, {0, 4}), ({"label_metric": "em"}, {0, 4}), ({}, CORRECT)]
)
def test_a_block_tells_each_outcome_whatever_it_shows(hindsight: dict[str, Any], correct: set[int]) -> None:
    """The answer "Andorra" has an F1 of a half."""
    settings = make_settings(hindsight={"labels": "none", "members": "leave_one_out", **hindsight})
    for block in make_case(settings, make_groups(make_tokenizer(), num_groups=1)).naive.blocks:
        assert {place for place, outcome in enumerate(block.outcomes) if outcome == "CORRECT"} == correct
        assert all(attempt.label is None for attempt in block.attempts)
