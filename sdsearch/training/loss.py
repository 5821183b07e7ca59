"""The objective of one optimiser step, L = L_GRPO + alpha * L_SD (paper, section 3.3), in micro-batches that add up.

Shapes: `N` read positions of a micro-batch (the sampled tokens, rollouts in order), `Q` distilled ones among them,
`K` support, `C` compared outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from schemas.settings.root import GrpoSettings, RetriesUse
from sdsearch.credit.divergence import open_divergence
from sdsearch.credit.turn_advantage import leaned_advantage
from sdsearch.model.balance import own_batches, waiting_share
from sdsearch.model.batching import TokenBatch, TokenSequence, idle_pass, microbatches
from sdsearch.model.ranks import num_ranks, totals
from sdsearch.model.sharding import together
from sdsearch.training.gradient import added_apart, sum_precisely, zero_gradient
from sdsearch.training.lm_head import DistillationTargets, TokenReadings, read_tokens
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.policy_gradient import (
    clipped_surrogate,
    filled,
    k3,
    ratio_truncation,
    truncated_importance_weight,
)
from sdsearch.training.weights import distillation_token_weights, policy_token_weights


@dataclass(frozen=True)
class TrainingRollout:
    """What the update reads of one rollout."""

    rollout_id: str
    sequence: TokenSequence  # reads are the sampled tokens
    sampled_logprobs: tuple[float | None, ...]  # one a read; None where the sampler gave none
    advantage: float
    distilled: tuple[int, ...]  # offsets into the rollout's tokens; () without a teacher
    ids_QK: Tensor
    teacher_QC: Tensor
    gates: tuple[float, ...] = ()  # of the distilled tokens, 0 to 1; () takes all of each
    leanings: tuple[float, ...] = ()  # one a read, -1 to 1: what the teacher says of its turn; () is 0
    turn_advantages: tuple[float, ...] = ()  # one a read: its turn's; () is `advantage` at each
    retry: RetriesUse | None = None  # what a retry is for: its log-probabilities are the policy's with the block
    in_policy_loss: bool = True  # and in its KL; where not, the rollout is there for its distilled tokens alone
    is_replacement: bool = False  # of a question that was drawn in place of another

    @property
    def advantages(self) -> tuple[float, ...]:
        """The advantage of each read."""
        return self.turn_advantages or (self.advantage,) * len(self.sequence.reads)

    @property
    def has_advantage(self) -> bool:
        """Whether any of its tokens has an advantage that is not 0."""
        return any(self.turn_advantages) if self.turn_advantages else bool(self.advantage)


@dataclass(frozen=True)
class StepTerms:
    """An optimiser step's sums over its tokens; tensors are scalars, gradients flow from the first three."""

    policy_loss: Tensor
    kl: Tensor
    sd_loss: Tensor
    entropy_sum: Tensor
    num_clipped: Tensor
    num_truncated: Tensor
    ratio_max: Tensor
    sampler_kl_sum: Tensor
    sampler_max_difference: Tensor
    num_missing_logprobs: Tensor
    num_read: Tensor  # tokens that were forwarded: all but those of rollouts without gradient


@dataclass(frozen=True)
class ScoredRollout:
    """A rollout with the log-probabilities (N,) that are computed once, before the first step."""

    rollout: TrainingRollout
    sampled_N: Tensor  # NaN where the sampler gave none
    trainer_N: Tensor | None  # of the weights before the update; None where the policy pass gives or no loss reads them
    reference_N: Tensor | None  # None without KL


@dataclass(frozen=True)
class StepMember:
    """A rollout in a step, with its share of the step's means."""

    scored: ScoredRollout
    policy_weight: float  # of each sampled token, in the policy loss and in the KL
    sd_weight: float


def weigh(scored: Sequence[ScoredRollout], grpo: GrpoSettings) -> list[StepMember]:
    """Fix each rollout's token weights over the whole step, before any micro-batch is made."""
    counts = [len(item.rollout.sequence.reads) if item.rollout.in_policy_loss else 0 for item in scored]
    policy = policy_token_weights(counts, grpo.aggregation, grpo.constant_tokens)
    distilled = distillation_token_weights([len(item.rollout.distilled) for item in scored])
    return [
        StepMember(item, policy_weight, sd_weight)
        for item, policy_weight, sd_weight in zip(scored, policy, distilled, strict=True)
    ]


def accumulate_gradient(
    model: nn.Module,
    members: Sequence[StepMember],
    settings: LossSettings,
    alpha: float,
    sd_gradient: list[Tensor] | None = None,
) -> StepTerms:
    """Add the step's gradient to the parameters, micro-batch by micro-batch and in fp32; return the step's sums.

    With `sd_gradient` the gradient of alpha * L_SD is added to those tensors instead, so that both can be measured.
    Rollouts whose gradient is exactly zero are not forwarded; without any other the gradient is zeros.
    """
    members = [member for member in members if _has_gradient(member, settings, alpha)]
    sequences = [member.scored.rollout.sequence for member in members]
    parameters = sum_precisely(model)
    parts: list[StepTerms] = []
    batches = own_batches(sequences, settings.max_tokens_per_microbatch)
    for indices in batches:
        terms = None if indices is None else _terms(model, [members[i] for i in indices], settings, alpha)
        grpo_loss, sd_loss = _losses(model, terms, settings, alpha)
        if sd_gradient is None or sd_loss is None:
            (grpo_loss if sd_loss is None else grpo_loss + sd_loss).backward()
        else:
            with added_apart(parameters, sd_gradient):
                sd_loss.backward(retain_graph=True)
            grpo_loss.backward()
        if terms is not None:
            parts.append(StepTerms(**{name: value.detach() for name, value in vars(terms).items()}))
    if not batches:
        for parameter, zeros in zip(parameters, zero_gradient(model), strict=True):
            parameter.grad = zeros if parameter.grad is None else parameter.grad
    return _sum_terms(parts)


def _losses(
    model: nn.Module, terms: StepTerms | None, settings: LossSettings, alpha: float
) -> tuple[Tensor, Tensor | None]:
    """Return a round's GRPO loss and alpha * L_SD; None where nothing is distilled.

    Sharded gradients are summed by all ranks together: of a round in which this rank has no work (`terms` is None), or
    nothing to distil where others may have, they are zeros.
    """
    if terms is None:
        nothing = together(model, partial(idle_pass, model))
        return nothing, nothing if alpha > 0 else None
    grpo_loss = terms.policy_loss + settings.grpo.kl_coefficient * terms.kl
    if alpha > 0 and terms.sd_loss.requires_grad:
        return grpo_loss, alpha * terms.sd_loss
    return grpo_loss, terms.policy_loss * 0 if alpha > 0 and num_ranks() > 1 else None


def step_waiting(members: Sequence[StepMember], settings: LossSettings, alpha: float) -> float | None:
    """Return which share of a step's passes the ranks wait for one another, in tokens; None with one rank."""
    sequences = [m.scored.rollout.sequence for m in members if _has_gradient(m, settings, alpha)]
    return waiting_share(sequences, settings.max_tokens_per_microbatch)


@torch.no_grad()
def measure_step(model: nn.Module, members: Sequence[StepMember], settings: LossSettings, alpha: float) -> StepTerms:
    """Return a step's sums as `accumulate_gradient` does, from the same micro-batches, without a gradient."""
    members = [member for member in members if _has_gradient(member, settings, alpha)]
    sequences = [member.scored.rollout.sequence for member in members]
    batches = microbatches(sequences, settings.max_tokens_per_microbatch)
    return _sum_terms([_terms(model, [members[i] for i in indices], settings, alpha) for indices in batches])


def total_loss(terms: StepTerms, kl_coefficient: float, alpha: float) -> float:
    """Return L = L_GRPO + alpha * L_SD of a step's sums."""
    return float(terms.policy_loss) + kl_coefficient * float(terms.kl) + alpha * float(terms.sd_loss)


def _has_gradient(member: StepMember, settings: LossSettings, alpha: float) -> bool:
    """Whether a rollout can move the policy: by its advantage, the KL or its distilled tokens."""
    rollout, distils = member.scored.rollout, alpha and settings.distillation.form == "loss"
    has_loss = member.policy_weight and (rollout.has_advantage or settings.grpo.kl_coefficient)
    return bool(has_loss or (distils and rollout.distilled))


def _terms(model: nn.Module, members: Sequence[StepMember], settings: LossSettings, alpha: float) -> StepTerms:
    device = next(model.parameters()).device
    batch = TokenBatch.of([member.scored.rollout.sequence for member in members], device)
    targets, sd_weight_Q = _distillation(members, settings, alpha, device)

    def read() -> tuple[Tensor, Tensor, Tensor]:
        hidden_ND = batch.hidden_at_reads(model)
        read = read_tokens(model, hidden_ND, batch.targets_N, targets, settings.temperature, settings.head_chunk)
        return read.logprob_N, read.entropy_N, read.divergence_Q  # FSDP looks for gradients in tuples, not in records.

    readings = TokenReadings(*together(model, read))
    reach = alpha if settings.distillation.form == "advantage" else 0.0
    return step_terms(readings, members, settings.grpo, sd_weight_Q, device, reach)


def step_terms(
    readings: TokenReadings,
    members: Sequence[StepMember],
    grpo: GrpoSettings,
    sd_weight_Q: Tensor,
    device: torch.device,
    reach: float = 0.0,
) -> StepTerms:
    """Return the weighted sums of the token losses (paper, sections 3.1 and 3.3) and of what is logged.

    reach: how far the teacher's word weighs the advantages, 0 where it is a loss or there is none.
    """
    scored = [member.scored for member in members]
    counts = [len(item.rollout.sequence.reads) for item in scored]
    given_N = torch.cat([item.sampled_N for item in scored]).to(device)
    advantage_N = torch.tensor([value for item in scored for value in item.rollout.advantages], device=device)
    if reach:
        advantage_N = leaned_advantage(advantage_N, _leanings(scored, device), reach)
    weight_N = _spread([member.policy_weight for member in members], counts, device)
    if grpo.old_logprobs == "trainer":
        kept = [item.trainer_N for item in scored if item.trainer_N is not None]
        old_N = torch.cat(kept).to(device) if kept else readings.logprob_N.detach()
        sampled_N = filled(given_N, old_N)
        policy_N, importance_N = old_N, truncated_importance_weight(old_N, sampled_N, grpo.importance_cap)
    else:
        old_N = sampled_N = filled(given_N, readings.logprob_N.detach())
        policy_N = readings.logprob_N
        importance_N = ratio_truncation(policy_N, sampled_N, grpo.importance_cap)
    loss_N, ratio_N, clipped_N = clipped_surrogate(
        readings.logprob_N, old_N, advantage_N, grpo.clip_low, grpo.clip_high, importance_N
    )
    own_N = _spread([float(item.rollout.retry is None) for item in scored], counts, device)  # k3 needs own draws
    compared_N = torch.where(own_N > 0, sampled_N, readings.logprob_N.detach())
    kl = torch.zeros((), device=device)
    if grpo.kl_coefficient:
        reference_N = torch.cat([item.reference_N for item in scored if item.reference_N is not None]).to(device)
        kl = (k3(readings.logprob_N, reference_N) * weight_N * own_N).sum()
    return StepTerms(
        policy_loss=(loss_N * weight_N).sum(),
        kl=kl,
        sd_loss=(readings.divergence_Q * sd_weight_Q).sum(),
        entropy_sum=readings.entropy_N.sum(),
        num_clipped=clipped_N.sum(),
        num_truncated=((policy_N - sampled_N).exp() > grpo.importance_cap).sum(),
        ratio_max=ratio_N.max(),
        sampler_kl_sum=k3(compared_N, readings.logprob_N.detach()).sum(),
        sampler_max_difference=(compared_N - readings.logprob_N.detach()).abs().max(),
        num_missing_logprobs=given_N.isnan().sum(),
        num_read=torch.tensor(len(given_N), device=device),
    )


def _leanings(scored: Sequence[ScoredRollout], device: torch.device) -> Tensor:
    of_rollouts = [item.rollout.leanings or (0.0,) * len(item.rollout.sequence.reads) for item in scored]
    return torch.tensor([value for leanings in of_rollouts for value in leanings], device=device)


def _spread(values: Sequence[float], counts: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).repeat_interleave(torch.tensor(counts, device=device))


def _distillation(
    members: Sequence[StepMember], settings: LossSettings, alpha: float, device: torch.device
) -> tuple[DistillationTargets | None, Tensor]:
    """Return the micro-batch's teacher targets and their weights (Q,) with the gates; None without any in the loss."""
    positions: list[int] = []
    start = 0
    for member in members:
        rollout = member.scored.rollout
        position_of = {offset: start + position for position, offset in enumerate(rollout.sequence.reads)}
        positions.extend(position_of[offset] for offset in rollout.distilled)
        start += len(rollout.sequence.reads)
    if not positions or alpha == 0 or settings.distillation.form == "advantage":
        return None, torch.zeros(0, device=device)
    having = [member for member in members if member.scored.rollout.distilled]
    counts = [len(member.scored.rollout.distilled) for member in having]
    targets = DistillationTargets(
        positions_Q=torch.tensor(positions, device=device),
        ids_QK=torch.cat([member.scored.rollout.ids_QK for member in having]).to(device),
        teacher_QC=torch.cat([member.scored.rollout.teacher_QC for member in having]).to(device),
        measure=open_divergence(settings.distillation),
        tail=settings.distillation.tail,
    )
    weight_Q = _spread([member.sd_weight for member in having], counts, device)
    rollouts = [member.scored.rollout for member in having]
    if any(rollout.gates for rollout in rollouts):
        gates = [gate for rollout in rollouts for gate in rollout.gates or (1.0,) * len(rollout.distilled)]
        weight_Q = weight_Q * torch.tensor(gates, device=device)
    return targets, weight_Q


def _sum_terms(parts: Sequence[StepTerms]) -> StepTerms:
    nothing = StepTerms(**{field.name: torch.zeros(()) for field in fields(StepTerms)})
    columns = {name: torch.stack([getattr(part, name) for part in parts or [nothing]]) for name in vars(nothing)}
    largest = {name: columns.pop(name).max() for name in ("ratio_max", "sampler_max_difference")}
    return StepTerms(**totals({name: values.sum() for name, values in columns.items()}, largest))
