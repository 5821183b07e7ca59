"""Combinations of settings that are refused, each with what to do, and those that are likely not meant."""

from __future__ import annotations

import json

import pytest

from flows.console.errors import UserError
from flows.settings.load import load_settings, stored_settings
from schemas.settings.rules import REFUSED, notes
from tests.flows.settings.test_settings import problem
from tests.support.records import make_run

IMPOSSIBLE = {
    ("distillation.divergence=mse", "distillation.tail=renormalise"): "set distillation.tail = 'bucket'",
    ("distillation.alpha=0",): "set distillation.enabled = false for plain GRPO, or alpha > 0",
    ("distillation.form=advantage", "distillation.clip=own"): "set strength.kind = 'alpha' and clip = 'joint'",
    ("distillation.form=advantage", "distillation.alpha=1.5"): "which must not turn their sign; set alpha ≤ 1",
    ("distillation.clip=own", "update.max_grad_norm=0"): "set max_grad_norm > 0, or clip = 'joint'",
    ("distillation.strength={kind='gradient_share', min_alpha=2.0}", "distillation.strength.max_alpha=1.0"): (
        "distillation.strength.min_alpha is above max_alpha; lower it, or raise max_alpha"
    ),
    ("distributed.ranks=2", "distillation.teacher=ema"): "set distributed.ranks = 1, or teacher = 'live'",
    ("distributed.ranks=2", "distributed.devices=[2]"): "name distributed.ranks / nodes cards",
    ("distributed.devices=[1,1]",): "names a card twice; name each once",
    ("sampling={kind = 'vllm', devices = [1, 2]}",): "name tensor_parallel_size x data_parallel_size cards",
    ("distributed.ranks=3", "distributed.nodes=2"): "let ranks be a multiple of nodes",
    ("distributed.ranks=2", "distributed.nodes=2"): "HOST:PORT of this machine, for the others to join",
    ("distributed.ranks=3", "distributed.sharding=hybrid"): "let ranks be a multiple of shard_ranks",
    ("hindsight.masking=current_documents", "hindsight.members=focal_only"): "leave members = 'group'",
    ("hindsight.masking=current_documents", "hindsight.labels=none"): "leave labels = 'outcome'",
    ("hindsight.masking=current_documents", "hindsight.answer=true"): "leave contrast = 'none', memory = 0 and answer",
    (
        "hindsight.masking=current_documents",
        "hindsight.own_query=drop",
    ): "set masking = 'queries', or own_query = 'keep'",
    ("hindsight.members=focal_only", "hindsight.memory=1"): "set memory = 0",
    ("hindsight.labels=none", "hindsight.contrast=flipped"): "set labels = 'outcome', or contrast = 'none'",
    ("hindsight.members=correct_only", "hindsight.labels=shuffled"): "set labels = 'outcome' or 'none'",
    ("evaluation.modes=['greedy', 'greedy']",): "evaluation.modes names a mode twice; name each once",
    ("model.attention=flex",): "set attention = 'split', or model.device = 'cuda:0'",
    ("reward.options.x=1",): "reward 'answer' has reward.metric and reward.format_bonus; set these",
    ("reward.turn=information_gain", "rollout.retries=2"): "set rollout.retries_use = 'distillation', retries = 0",
    (
        "rollout.retries=2",
        "rollout.retries_use=distillation",
        "distillation.gate=outcome",
    ): "or retries_use = 'off_policy'",
    ("rollout.retries=2", "rollout.retries_use=distillation", "hindsight.homogeneous=skip"): "or retries_use ",
    ("grpo.filter=resample", "reward.turn=information_gain"): "set filter = 'zero_advantage', or reward.turn",
    ("grpo.filter=resample", "rollout.retries=2"): "replaces the groups that rollout.retries gives other rewards",
    ("evaluation.judge.url=http://127.0.0.1:8000/v1",): "evaluation.judge.model no model there; name it",
    ("evaluation.sets={nq = {}, 'nq:test' = {}}",): "evaluation.sets names a data set's split twice; name each once",
    ("evaluation.sets.world:dev.every=2",): "evaluation.sets names the set that the run itself is evaluated on",
    ("tracking.sinks=['wandb', 'wandb']",): "tracking.sinks names a tracker twice; name each once",
    ("tracking.options.wandb.project=mine",): "have tables of their own, such as [tracking.wandb]",
    ("data.train=['world', 'world:train']",): "data.train or data.test names a data set's split twice; name each once",
}


@pytest.mark.parametrize("overrides", IMPOSSIBLE, ids=str)
def test_an_impossible_combination_says_what_to_do(overrides: tuple[str, ...]) -> None:
    assert IMPOSSIBLE[overrides] in problem("tiny", *overrides)
    for left_out in overrides:
        rest = [override for override in overrides if override != left_out]
        if not any(override.startswith("distillation.strength.") for override in rest):  # It is no strength by itself.
            load_settings("tiny", rest)


def test_members_chosen_by_outcome_take_no_labels_that_deny_it() -> None:
    assert "set labels = 'outcome' or 'none'" in problem(
        "tiny", "hindsight.members=correct_only", "hindsight.labels=random"
    )


def test_every_rule_has_its_case() -> None:
    assert len(IMPOSSIBLE) == len(REFUSED)
    several = problem("tiny", *(override for overrides in IMPOSSIBLE for override in overrides))
    assert several.count("; ") > len(IMPOSSIBLE)


def test_a_run_keeps_settings_that_a_later_rule_refuses() -> None:
    before = load_settings("tiny").model_dump(mode="json")
    before["distillation"]["alpha"] = 0.0
    assert stored_settings(make_run().model_copy(update={"settings_json": json.dumps(before)})).distillation.alpha == 0
    before["update"]["momentum"] = 0.5
    with pytest.raises(UserError, match=r"run 'first', made by version 0.1.0: unknown setting 'update.momentum'"):
        stored_settings(make_run().model_copy(update={"settings_json": json.dumps(before)}))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], None),
        (["distillation.warmup_iterations=3"], "plain GRPO to its end"),
        (["distillation.warmup_iterations=3", "distillation.enabled=false"], None),
        (["update.warmup_steps=6"], "no schedule begins"),
        (["update.warmup_steps=5"], None),
        (["hindsight.answer=true"], "leak to the teacher"),
        (["data.questions=one.jsonl"], "trained and evaluated on"),
        (["data.questions=one_{split}.jsonl"], None),
        (["data.questions=hub:one"], None),
        (["data.questions=one.jsonl", "data.train=['nq']"], None),
        (["data.train=['world']", "data.sets.world=one.jsonl"], "trained and evaluated on"),
    ],
    ids=str,
)
def test_what_is_likely_not_meant_is_noted(overrides: list[str], said: str | None) -> None:
    noted = notes(load_settings("tiny", overrides))
    assert [said in note for note in noted] == ([True] if said else [])
