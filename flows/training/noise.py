"""Whether the distillation gradient stands out from what bfloat16 rounds."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.records.update import StepReport


def told_of_noise(iteration: int, steps: Sequence[StepReport]) -> str | None:
    """Return a sentence when an iteration's distillation gradient is below the error of the whole one, by estimate."""
    measured = [(step.grad_norm_sd, step.grad_noise) for step in steps if step.alpha and step.grad_noise]
    signal, noise = (
        (sum(part or 0.0 for part in parts) for parts in zip(*measured, strict=True)) if measured else (1, 0)
    )
    if signal >= noise:
        return None
    return (
        f"iteration {iteration}: the distillation gradient is about {signal / noise:.2f} of the error that bfloat16 "
        "leaves in the gradient, so in a single step it is lost in it; raise distillation.alpha, or train with "
        "model.dtype = 'float32' (sd_signal_to_noise in v_iterations)"
    )
