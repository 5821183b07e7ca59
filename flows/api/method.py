"""The method's steps by hand: roll out, score, build the blocks, ask the teacher, compute the loss.

Each takes and returns the records that a run stores, so stored ones and new ones mix: the groups of a run, a block of
other settings, the teacher's credit for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.api.policy import Policy
from schemas.records.hindsight import HindsightBlock
from schemas.records.question import Question
from schemas.records.retry import RetriedGroup
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import QueryCredit, TeacherTargets
from schemas.settings.root import Settings
from sdsearch.credit import hindsight, scoring
from sdsearch.credit.filtering import mark_filtered
from sdsearch.credit.teacher import TargetTensors, TeacherSettings, compute_targets, no_targets
from sdsearch.model.dropout import without_randomness
from sdsearch.protocol.ports import open_protocol
from sdsearch.retrieval.ports import Retriever
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.sampling.transformers_sampler import TransformersSampler
from sdsearch.training.logprobs import score_once
from sdsearch.training.loss import (
    ScoredRollout,
    StepMember,
    StepTerms,
    accumulate_gradient,
    measure_step,
    total_loss,
    weigh,
)
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.training_set import training_rollouts
from sdsearch.training.update import optimiser_steps


@dataclass(frozen=True, repr=False)
class Teacher:
    """What the teacher says of some groups."""

    targets: list[TeacherTargets]
    """Each distilled rollout's rows in `distributions`."""
    credit: list[QueryCredit]
    """Each distilled token with both log-probabilities and the divergence, rollouts in order."""
    distributions: TargetTensors
    """The teacher's log-probabilities over the support of each distilled token."""

    def __repr__(self) -> str:
        return f"Teacher of {len(self.credit)} tokens of {len(self.targets)} rollouts"


@dataclass(frozen=True, repr=False)
class Loss:
    """The loss of some rollouts as one optimiser step, at given weights (paper, section 3.3)."""

    loss: float
    """policy_loss + kl_coefficient * kl + alpha * sd_loss."""
    policy_loss: float
    """Clipped surrogate, nats."""
    kl: float
    """k3 estimate of KL(policy || reference), nats per token."""
    sd_loss: float
    """L_SD before alpha, nats; 0 while alpha is 0."""
    alpha: float
    num_rollouts: int
    num_completion_tokens: int
    num_distilled_tokens: int

    def __repr__(self) -> str:
        parts = f"policy {self.policy_loss:.6f}, KL {self.kl:.6f}, SD {self.sd_loss:.6f}, alpha {self.alpha:g}"
        counts = f"{self.num_rollouts} rollouts, {self.num_completion_tokens} sampled tokens"
        return f"Loss({self.loss:.6f}: {parts}; {counts}, {self.num_distilled_tokens} distilled)"


def roll_out(
    policy: Policy,
    questions: Sequence[Question],
    retriever: Retriever,
    *,
    group_size: int | None = None,
    temperature: float | None = None,
    iteration: int = 0,
) -> list[Group]:
    """Sample a group of rollouts for each question with the policy's own model, in this process.

    group_size and temperature are those of policy.settings.rollout when they are not given; 0 is greedy. Seeds derive
    from the settings' seed, `iteration`, the question and the place in the group: the same call gives the same
    rollouts, and with the iteration of a run and its questions those of the run. Raises RetrieverDownError when a
    search fails, UserError for a prompt that is too long.

    Examples:
        >>> run = sdsearch.open_run("workspace", "first")
        >>> groups = sdsearch.roll_out(run.policy(3), run.questions("dev")[:1], run.retriever(), group_size=2)
        >>> [len(rollout.queries) > 0 for rollout in groups[0].rollouts]
        [True, True]
    """
    settings = policy.settings
    protocol = open_protocol(settings.rollout)
    loop = RolloutLoop(
        policy.tokenizer,
        TransformersSampler(policy.model, policy.tokenizer, protocol),
        retriever,
        RolloutLimits.of(settings.rollout, settings.retrieval.num_passages, policy.max_context_tokens),
        policy.prompt_frame,
        protocol,
    )
    size = settings.rollout.questions_per_batch
    return [
        group
        for start in range(0, len(questions), size)
        for group in loop.roll_out(
            questions[start : start + size],
            run_seed=settings.seed,
            iteration=iteration,
            policy_version=policy.version,
            group_size=group_size or settings.rollout.group_size,
            temperature=settings.rollout.temperature if temperature is None else temperature,
        )
    ]


def score_groups(groups: Sequence[Group], settings: Settings) -> list[Score]:
    """Score each rollout (EM, F1, format, passages that hold an answer), reward it, and compare it with its siblings.

    Examples:
        >>> run = sdsearch.open_run("workspace", "first")
        >>> records = run.iteration(3).records()
        >>> sdsearch.score_groups(records.groups, run.settings) == records.scores
        True
    """
    return mark_filtered(scoring.score_groups(groups, settings.reward, settings.grpo), settings.grpo)


def build_blocks(
    policy: Policy, groups: Sequence[Group], scores: Sequence[Score], settings: Settings | None = None
) -> list[HindsightBlock]:
    """Build the groups' hindsight blocks with the policy's tokenizer, as `settings.hindsight` says.

    The settings are the policy's when none are given; others show what another masking, labels or members do. What
    hindsight.memory adds of earlier iterations is not looked up here.

    Examples:
        >>> run = sdsearch.open_run("workspace", "first")
        >>> records = run.iteration(3).records()
        >>> sdsearch.build_blocks(run.policy(2), records.groups, records.scores) == records.blocks
        True
    """
    settings = settings or policy.settings
    of_group = scoring.scores_by_group(scores)
    return [
        block
        for group in groups
        for block in hindsight.build_blocks(
            group,
            of_group[group.id],
            settings=settings.hindsight,
            seed=settings.seed,
            tokenizer=policy.tokenizer,
            max_context_tokens=policy.max_context_tokens,
            tags=open_protocol(policy.settings.rollout).tags,
        )
    ]


def compute_teacher(
    policy: Policy, groups: Sequence[Group], blocks: Sequence[HindsightBlock], settings: Settings | None = None
) -> Teacher:
    """Run the policy over the groups' distilled tokens with the blocks (the teacher) and without (the student).

    The policy is the one that sampled the groups. The settings are the policy's when none are given. Raises UserError
    when distillation.top_k is more than the vocabulary.

    Examples:
        >>> run = sdsearch.open_run("workspace", "first")
        >>> records = run.iteration(3).records()
        >>> teacher = sdsearch.compute_teacher(run.policy(2), records.groups, records.blocks)
        >>> [token.token for token in teacher.credit] == [token.token for token in records.credit]
        True
    """
    settings = settings or policy.settings
    tensors, targets, credit = compute_targets(
        policy.model,
        policy.tokenizer,
        groups,
        blocks,
        TeacherSettings.of(settings),
        policy._teacher(settings),
    )
    return Teacher(targets, credit, tensors)


def compute_loss(
    policy: Policy,
    groups: Sequence[Group],
    scores: Sequence[Score],
    teacher: Teacher | None = None,
    *,
    alpha: float | None = None,
    backward: bool = False,
    retried: Sequence[RetriedGroup] = (),
) -> Loss:
    """Compute the loss of groups at the policy's weights, all their rollouts as one optimiser step.

    scores may hold those of other groups too. Without a teacher nothing is distilled. alpha is distillation.alpha when
    it is not given. With `backward` the gradient is added to `.grad` of the policy's parameters, in micro-batches, as
    the update does; no step is taken. retried: the groups' retries (rollout.retries), whose scores `scores` then holds.

    Examples:
        >>> run = sdsearch.open_run("workspace", "first")
        >>> it = run.iteration(3)
        >>> groups, scores = it.records().groups, it.records().scores
        >>> loss = sdsearch.compute_loss(run.policy(2), groups[:1], scores, it.teacher())
        >>> loss.num_rollouts, loss == it.loss(group=groups[0].id)
        (4, True)
    """
    alpha = policy.settings.distillation.alpha if alpha is None else alpha
    settings = LossSettings.of(policy.settings)
    members = weigh(_scored(policy, groups, scores, teacher, settings, retried), settings.grpo)
    with without_randomness(policy.model):
        if backward:
            terms = accumulate_gradient(policy.model, members, settings, alpha)
        else:
            terms = measure_step(policy.model, members, settings, alpha)
    return _loss(members, terms, settings.grpo.kl_coefficient, alpha)


def loss_of_first_step(
    policy: Policy,
    groups: Sequence[Group],
    scores: Sequence[Score],
    teacher: Teacher,
    *,
    iteration: int,
    alpha: float,
    retried: Sequence[RetriedGroup] = (),
) -> Loss:
    """Compute the loss of an iteration's first optimiser step, rollouts in the order in which the update read them."""
    settings, loss_settings = policy.settings, LossSettings.of(policy.settings)
    scored = _scored(policy, groups, scores, teacher, loss_settings, retried)
    members = next(optimiser_steps(scored, settings.update, loss_settings.grpo, settings.seed, iteration))
    with without_randomness(policy.model):
        terms = measure_step(policy.model, members, loss_settings, alpha)
    return _loss(members, terms, loss_settings.grpo.kl_coefficient, alpha)


def _scored(
    policy: Policy,
    groups: Sequence[Group],
    scores: Sequence[Score],
    teacher: Teacher | None,
    settings: LossSettings,
    retried: Sequence[RetriedGroup],
) -> list[ScoredRollout]:
    """Return what the loss reads of each rollout, sampling order."""
    targets, tensors = (teacher.targets, teacher.distributions) if teacher else ([], no_targets())
    use = policy.settings.rollout.retries_use
    rollouts = training_rollouts(groups, scores, targets, tensors, retried, use)
    with without_randomness(policy.model):
        # The weights are those before a step, so that the policy's own pass gives the trainer's log-probabilities.
        return score_once(policy.model, policy.reference, rollouts, settings, one_step=True)


def _loss(members: Sequence[StepMember], terms: StepTerms, kl_coefficient: float, alpha: float) -> Loss:
    return Loss(
        loss=total_loss(terms, kl_coefficient, alpha),
        policy_loss=float(terms.policy_loss),
        kl=float(terms.kl),
        sd_loss=float(terms.sd_loss),
        alpha=alpha,
        num_rollouts=len(members),
        num_completion_tokens=sum(len(member.scored.rollout.sequence.reads) for member in members),
        num_distilled_tokens=sum(len(member.scored.rollout.distilled) for member in members) if alpha else 0,
    )
