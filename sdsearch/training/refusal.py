"""What is told of an optimiser step whose loss or gradient is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from schemas.errors import UserError
from schemas.records.update import RefusedRollout, RefusedStep, StepReport
from schemas.settings.root import Settings
from sdsearch.model.policy import trainable_parameters
from sdsearch.model.ranks import whole
from sdsearch.training.logprobs import sequence_logprobs
from sdsearch.training.loss import StepMember, accumulate_gradient
from sdsearch.training.loss_settings import LossSettings


class NonFiniteUpdateError(UserError):
    """A loss or gradient is NaN or infinite; the step was refused and the weights are as before it."""

    def __init__(self, refused: RefusedStep) -> None:
        self.refused = refused
        broken = [rollout.rollout_id for rollout in refused.rollouts if not _is_finite(rollout)]
        names = ", ".join(broken[:3]) + (", …" if len(broken) > 3 else "")
        guilty = f"rollouts that are not finite: {names} " if broken else "no single rollout is not finite "
        damaged = f"weights that are not finite already: {', '.join(refused.weights_not_finite[:3])}; "
        super().__init__(
            f"iteration {refused.iteration}, optimiser step {refused.step}: loss {refused.loss}, gradient norm "
            f"{refused.grad_norm}; both must be finite. The step was refused and the last checkpoint is intact; "
            f"{guilty}({len(broken)} of {len(refused.rollouts)}); {damaged if refused.weights_not_finite else ''}"
            "resume repeats the step, or lower update.learning_rate in a new run"
        )


def describe_refused(
    model: nn.Module, members: Sequence[StepMember], settings: Settings, iteration: int, report: StepReport
) -> RefusedStep:
    """Return the step with every rollout's own share; the gradient in `model` is replaced by the last rollout's.

    It takes all settings, because the record keeps them: the step can be computed again from the record alone.
    """
    loss_settings = LossSettings.of(settings)
    parameters = trainable_parameters(model)
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    weights_not_finite, gradients_not_finite = _not_finite(parameters), _not_finite(gradients)
    return RefusedStep(
        iteration=iteration,
        step=report.step,
        loss=report.loss,
        grad_norm=report.grad_norm,
        alpha=report.alpha,
        learning_rate=report.learning_rate,
        weights_not_finite=weights_not_finite,
        gradients_not_finite=gradients_not_finite,
        settings=settings,
        rollouts=tuple(_describe_rollout(model, member, loss_settings, report.alpha) for member in members),
    )


def _describe_rollout(model: nn.Module, member: StepMember, settings: LossSettings, alpha: float) -> RefusedRollout:
    scored, rollout = member.scored, member.scored.rollout
    model.zero_grad(set_to_none=True)
    terms = accumulate_gradient(model, [member], settings, alpha)
    gradients = [p.grad for p in trainable_parameters(model).values() if p.grad is not None]
    (policy_logprobs,) = sequence_logprobs(model, [rollout.sequence], settings)
    return RefusedRollout(
        rollout_id=rollout.rollout_id,
        prompt_token_ids=rollout.sequence.context_ids,
        token_ids=rollout.sequence.token_ids,
        completion_positions=rollout.sequence.reads,
        distilled_positions=rollout.distilled,
        sampled_logprobs=rollout.sampled_logprobs,
        policy_logprobs=tuple(policy_logprobs.tolist()),
        trainer_logprobs=_values(scored.trainer_N),
        reference_logprobs=_values(scored.reference_N),
        advantage=rollout.advantage,
        turn_advantages=rollout.turn_advantages,
        retry=rollout.retry,
        in_policy_loss=rollout.in_policy_loss,
        policy_loss=float(terms.policy_loss),
        kl=float(terms.kl),
        sd_loss=float(terms.sd_loss),
        grad_norm=float(whole(torch.nn.utils.get_total_norm(gradients))),
    )


def _values(logprobs_N: Tensor | None) -> tuple[float, ...] | None:
    return None if logprobs_N is None else tuple(logprobs_N.tolist())


def _not_finite(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name, tensor in tensors.items() if not bool(whole(torch.isfinite(tensor)).all()))


def _is_finite(rollout: RefusedRollout) -> bool:
    return all(map(math.isfinite, (rollout.policy_loss, rollout.kl, rollout.sd_loss, rollout.grad_norm)))
