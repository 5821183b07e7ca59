"""Which settings do not go together, and which are likely not meant: each as one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, NamedTuple

from schemas.settings.cards import engine_numbers
from schemas.settings.data import HUB, WORLD, set_name
from schemas.settings.sampling import VllmSamplerSettings
from schemas.settings.strength import GradientShareStrength
from schemas.settings.tracking import SHIPPED
from schemas.settings.void import void_notes

if TYPE_CHECKING:
    from schemas.settings.root import Settings


ANSWER_LEAKS: Final = (
    "hindsight.answer is true: the golden answers are in the blocks and leak to the teacher, so the policy may learn "
    "queries that only someone who knows the answer would write; not comparable with the paper"
)
"""What is said wherever these settings are shown."""


class Rule(NamedTuple):
    """A sentence for a person, and when it holds."""

    applies: Callable[[Settings], bool]
    sentence: str


def _repeats(names: tuple[Hashable, ...]) -> bool:
    return len(set(names)) < len(names)


def _misses_engine_cards(settings: Settings) -> bool:
    sampling = settings.sampling
    if not isinstance(sampling, VllmSamplerSettings) or not sampling.devices:
        return False
    return len(sampling.devices) != sampling.tensor_parallel_size * sampling.data_parallel_size


REFUSED: Final[tuple[Rule, ...]] = (
    Rule(
        lambda s: s.distillation.divergence == "mse" and s.distillation.tail == "renormalise",
        "distillation.divergence 'mse' compares probabilities as they are; set distillation.tail = 'bucket'",
    ),
    Rule(
        lambda s: s.distillation.enabled and s.distillation.alpha == 0,
        "distillation.alpha 0 leaves nothing to distil; set distillation.enabled = false for plain GRPO, or alpha > 0",
    ),
    Rule(
        lambda s: s.distillation.clip == "own" and s.update.max_grad_norm == 0,
        "distillation.clip 'own' bounds the distillation's gradient by update.max_grad_norm where no group is mixed; "
        "set max_grad_norm > 0, or clip = 'joint'",
    ),
    Rule(
        lambda s: (
            isinstance(strength := s.distillation.strength, GradientShareStrength)
            and strength.min_alpha > strength.max_alpha
        ),
        "distillation.strength.min_alpha is above max_alpha; lower it, or raise max_alpha",
    ),
    Rule(
        lambda s: (
            s.distillation.form == "advantage"
            and (isinstance(s.distillation.strength, GradientShareStrength) or s.distillation.clip == "own")
        ),
        "distillation.form 'advantage' has no gradient of its own to measure or clip; set strength.kind = 'alpha' and "
        "clip = 'joint'",
    ),
    Rule(
        lambda s: s.distillation.form == "advantage" and s.distillation.alpha > 1,
        "distillation.form 'advantage' weighs advantages by 1 ± alpha, which must not turn their sign; set alpha ≤ 1",
    ),
    Rule(
        lambda s: s.hindsight.masking == "current_documents" and s.hindsight.members != "group",
        "hindsight.masking 'current_documents' shows no siblings, so hindsight.members has no effect; "
        "leave members = 'group'",
    ),
    Rule(
        lambda s: s.hindsight.masking == "current_documents" and s.hindsight.labels != "outcome",
        "hindsight.masking 'current_documents' shows no attempts, so hindsight.labels has no effect; "
        "leave labels = 'outcome'",
    ),
    Rule(
        lambda s: (
            s.hindsight.masking == "current_documents"
            and (s.hindsight.contrast != "none" or s.hindsight.memory > 0 or s.hindsight.answer)
        ),
        "hindsight.masking 'current_documents' shows no attempts, so hindsight.contrast, .memory and .answer have no "
        "effect; leave contrast = 'none', memory = 0 and answer = false",
    ),
    Rule(
        lambda s: s.hindsight.contrast != "none" and s.hindsight.labels == "none",
        "hindsight.contrast changes the labels of the block, and hindsight.labels 'none' shows none; set labels = "
        "'outcome', or contrast = 'none'",
    ),
    Rule(
        lambda s: s.hindsight.members == "focal_only" and s.hindsight.memory > 0,
        "hindsight.members 'focal_only' shows the focal rollout alone, which hindsight.memory would contradict; set "
        "memory = 0",
    ),
    Rule(
        lambda s: s.hindsight.own_query != "keep" and s.hindsight.masking in ("none", "current_documents"),
        "hindsight.own_query looks for a query among the block's queries; set masking = 'queries', or own_query = "
        "'keep'",
    ),
    Rule(
        lambda s: s.hindsight.members == "correct_only" and s.hindsight.labels in ("shuffled", "random"),
        "hindsight.members 'correct_only' chooses attempts by their outcome, which hindsight.labels 'shuffled' or "
        "'random' would contradict; set labels = 'outcome' or 'none'",
    ),
    Rule(
        lambda s: bool(s.rollout.retries) and s.rollout.retries_use == "off_policy" and s.reward.turn != "none",
        "reward.turn compares the turns of siblings, and retries are of another policy; set rollout.retries_use = "
        "'distillation', retries = 0, or reward.turn = 'none'",
    ),
    Rule(
        lambda s: (
            bool(s.rollout.retries)
            and s.rollout.retries_use == "distillation"
            and (s.distillation.gate != "none" or s.distillation.form != "loss" or not s.distillation.enabled)
        ),
        "rollout.retries_use 'distillation' takes retries into L_SD whole; set distillation.enabled = true, form = "
        "'loss' and gate = 'none', or retries_use = 'off_policy'",
    ),
    Rule(
        lambda s: (
            bool(s.rollout.retries)
            and s.rollout.retries_use == "distillation"
            and (
                s.hindsight.homogeneous == "skip"
                or s.hindsight.members != "group"
                or s.hindsight.own_query != "keep"
                or s.hindsight.masking == "current_documents"
            )
        ),
        "rollout.retries_use 'distillation' asks the teacher under the one block of a group that failed; set "
        "hindsight.homogeneous = 'keep', members = 'group', own_query = 'keep' and masking = 'queries', or retries_use "
        "= 'off_policy'",
    ),
    Rule(
        lambda s: s.grpo.filter == "resample" and s.reward.turn != "none",
        "grpo.filter 'resample' asks for different rewards of whole rollouts, and reward.turn gives turns advantages "
        "of their own; set filter = 'zero_advantage', or reward.turn = 'none'",
    ),
    Rule(
        lambda s: s.grpo.filter == "resample" and bool(s.rollout.retries) and s.rollout.retries_use == "off_policy",
        "grpo.filter 'resample' replaces the groups that rollout.retries gives other rewards; set filter = "
        "'zero_advantage', retries = 0, or rollout.retries_use = 'distillation'",
    ),
    Rule(
        lambda s: s.reward.name == "answer" and bool(s.reward.options),
        "reward.options are a plugin's, and reward 'answer' has reward.metric and reward.format_bonus; set these",
    ),
    Rule(
        lambda s: len(set(s.evaluation.modes)) < len(s.evaluation.modes),
        "evaluation.modes names a mode twice; name each once",
    ),
    Rule(
        lambda s: s.model.attention == "flex" and not s.model.device.startswith("cuda"),
        "model.attention 'flex' trains on a GPU alone (FlexAttention has no backward pass elsewhere); set attention = "
        "'split', or model.device = 'cuda:0'",
    ),
    Rule(
        lambda s: s.distributed.ranks > 1 and s.distillation.teacher == "ema",
        "distillation.teacher 'ema' is averaged by one process; set distributed.ranks = 1, or teacher = 'live'",
    ),
    Rule(
        lambda s: (
            s.distributed.sharding == "hybrid"
            and s.distributed.ranks > 1
            and s.distributed.ranks % s.distributed.shard_ranks > 0
        ),
        "distributed.sharding 'hybrid' makes copies that are spread over shard_ranks ranks each; let ranks be a "
        "multiple of shard_ranks, or set sharding = 'full'",
    ),
    Rule(
        lambda s: s.distributed.ranks > 1 and s.distributed.ranks % s.distributed.nodes > 0,
        "distributed.ranks are spread evenly over distributed.nodes machines; let ranks be a multiple of nodes",
    ),
    Rule(
        lambda s: s.distributed.ranks > 1 and s.distributed.nodes > 1 and not s.distributed.endpoint,
        "distributed.nodes above 1 needs distributed.endpoint, HOST:PORT of this machine, for the others to join; set "
        "it, or nodes = 1",
    ),
    Rule(
        lambda s: _repeats(s.distributed.devices) or _repeats(engine_numbers(s)),
        "distributed.devices or sampling.devices names a card twice; name each once",
    ),
    Rule(
        lambda s: s.distributed.ranks > 1 and len(s.distributed.devices) not in (0, s.distributed.ranks_per_node),
        "distributed.devices gives each rank of a machine a card of its own; name distributed.ranks / nodes cards, or "
        "none for the first ones",
    ),
    Rule(
        _misses_engine_cards,
        "sampling.devices has a card for each part of each copy of the model; name tensor_parallel_size x "
        "data_parallel_size cards, or none for the first ones",
    ),
    Rule(
        lambda s: _repeats(s.data.training_sets) or _repeats(s.data.test_sets(s.evaluation.split)),
        "data.train or data.test names a data set's split twice; name each once",
    ),
    Rule(
        lambda s: bool(s.evaluation.judge.url) and not s.evaluation.judge.model,
        "evaluation.judge.url names a server, and evaluation.judge.model no model there; name it",
    ),
    Rule(
        lambda s: len({set_name(text, "test") for text in s.evaluation.sets}) < len(s.evaluation.sets),
        "evaluation.sets names a data set's split twice; name each once",
    ),
    Rule(
        lambda s: str(s.evaluation.main_set(s.data).name) in {str(set_name(t, "test")) for t in s.evaluation.sets},
        "evaluation.sets names the set that the run itself is evaluated on (data.dataset, evaluation.split); leave it "
        "out, and set evaluation.num_questions and every",
    ),
    Rule(
        lambda s: len(set(s.tracking.sinks)) < len(s.tracking.sinks),
        "tracking.sinks names a tracker twice; name each once",
    ),
    Rule(
        lambda s: not set(s.tracking.options) <= set(s.tracking.sinks) - set(SHIPPED),
        "tracking.options are those of plugins that tracking.sinks names, a table for each; tensorboard, wandb, mlflow "
        "and trackio have tables of their own, such as [tracking.wandb]",
    ),
)
"""Combinations that are refused when settings are read."""

NOTED: Final[tuple[Rule, ...]] = (
    Rule(
        lambda s: s.distils and s.hindsight.answer,
        ANSWER_LEAKS,
    ),
    Rule(
        lambda s: s.only_warms_up,
        "distillation.warmup_iterations is not below iterations: this run is plain GRPO to its end; lower it, or raise "
        "iterations",
    ),
    Rule(
        lambda s: s.update.warmup_steps >= s.iterations * s.num_steps_per_iteration,
        "update.warmup_steps is not below the run's optimiser steps: the learning rate only rises, no schedule begins",
    ),
    Rule(
        lambda s: (
            (location := s.data.location_of(s.data.dataset)) != WORLD
            and not location.startswith(HUB)
            and "{split}" not in location
            and any(dataset == s.data.dataset for dataset, split in s.data.training_sets if split != s.evaluation.split)
        ),
        "data.questions has no {split} in its name: the same file is trained and evaluated on",
    ),
)
"""What is allowed and said when a run starts."""


def broken_rules(settings: Settings) -> list[str]:
    """Return the sentences of the combinations that these settings may not have."""
    return [rule.sentence for rule in REFUSED if rule.applies(settings)]


def notes(settings: Settings) -> list[str]:
    """Return what a person should know before these settings run, a sentence each."""
    return [*(rule.sentence for rule in NOTED if rule.applies(settings)), *void_notes(settings)]
