"""What bfloat16 leaves of the distillation gradient: by how a step's micro-batches are summed, and by alpha.

    python benchmarks/precision.py [--questions 16] [--results docs/explanation/precision.md]

The rollouts, scores and teacher's distributions are those of a first iteration of `quickstart` without warm-up, made
here. The exact gradients are those of a float64 model that has the bfloat16 model's weights. Of the step's gradient in
bfloat16, made with and without L_SD, the difference is what bfloat16 leaves of the SD part: `kept` is its projection
on the exact part, over that part's length; `noise` is the length of the rest, over the same. `error of the gradient` is
the whole gradient's distance to the exact one, over the exact GRPO part's length, and `signal to noise` the exact SD
part's length over that distance. A sum in bfloat16 is made here by hand: the program sums in fp32.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from results import machine, put_results
from torch import Tensor, nn

from flows.run.policy import model_folder
from flows.settings.load import load_settings
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from schemas.records.score import Score
from schemas.records.teacher import TeacherTargets
from schemas.settings.root import Settings
from sdsearch.credit.teacher import TargetTensors
from sdsearch.model.batching import microbatches
from sdsearch.model.policy import load_model, trainable_parameters
from sdsearch.training.loss import ScoredRollout, StepMember, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.training_set import training_rollouts
from storage.database.stage_rows import file_of
from storage.storage import Storage
from storage.workspace import Workspace

RUN = "precision"
ALPHAS = (1e-3, 1e-1, 1.0)
WHOLE, SMALL = 10**6, 1  # tokens a micro-batch: all rollouts in one, or each in its own


@dataclass(frozen=True)
class Way:
    """One way to make the step's gradient in bfloat16."""

    name: str
    max_tokens: int
    sums_in_bfloat16: bool


WAYS = (
    Way("one micro-batch", WHOLE, False),
    Way("summed in bfloat16", SMALL, True),
    Way("summed in fp32", SMALL, False),
)


def settings_of(questions: int, max_tokens: int) -> Settings:
    """Return quickstart's settings with every rollout in one step, without warm-up and KL."""
    lines = [f"data.questions_per_iteration={questions}", f"update.max_tokens_per_microbatch={max_tokens}"]
    fixed = ["iterations=1", "distillation.warmup_iterations=0", "grpo.kl_coefficient=0", "evaluation.num_questions=1"]
    return load_settings("quickstart", [*lines, *fixed, f"update.rollouts_per_step={questions * 5}"])


def draw_members(questions: int, folder: Path) -> list[StepMember]:
    """Train one iteration there, and return its rollouts as the update's one step has them."""
    settings = settings_of(questions, WHOLE)
    command = [sys.executable, "-m", "flows.app", "train", "quickstart", "--no-prefect", "--run", RUN]
    sets = ["iterations=1", "distillation.warmup_iterations=0", f"data.questions_per_iteration={questions}"]
    overrides = [word for line in [*sets, "evaluation.num_questions=1"] for word in ("--set", line)]
    subprocess.run([*command, "--workspace", str(folder), *overrides], check=True, stdout=subprocess.DEVNULL)
    storage = Storage(Workspace.open(folder))

    def of(stage: str, name: str) -> object:
        record = storage.ledger.done(StageKey(run=RUN, iteration=1, stage=stage))
        assert record is not None
        return file_of(record, name)

    stored = storage.artifacts.read_tensors(of("teacher", "distributions"))
    rollouts = training_rollouts(
        storage.artifacts.read_records(of("sample", "groups"), Group),
        storage.artifacts.read_records(of("score", "scores"), Score),
        storage.artifacts.read_records(of("teacher", "targets"), TeacherTargets),
        TargetTensors(stored["ids"], stored["logprobs"]),
    )
    # The denominator is the policy's own probability, as in an on-policy step: NaN where the sampler gave none.
    missing = [torch.full((len(rollout.sequence.reads),), torch.nan) for rollout in rollouts]
    scored = [ScoredRollout(rollout, given, None, None) for rollout, given in zip(rollouts, missing, strict=True)]
    return weigh(scored, settings.grpo)


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients])


def gradient_of(model: nn.Module, members: Sequence[StepMember], settings: Settings, alpha: float) -> Tensor:
    """Return the step's gradient as one vector, summed as the program sums."""
    model.zero_grad()
    accumulate_gradient(model, members, LossSettings.of(settings), alpha)
    return flat([parameter.grad for parameter in trainable_parameters(model).values() if parameter.grad is not None])


def gradient_in(model: nn.Module, members: Sequence[StepMember], settings: Settings, alpha: float, way: Way) -> Tensor:
    """Return the step's gradient made in one of the ways."""
    if not way.sums_in_bfloat16:
        return gradient_of(model, members, settings, alpha)
    total = None
    moving = acting(members, alpha)
    for indices in microbatches([member.scored.rollout.sequence for member in moving], way.max_tokens):
        part = gradient_of(model, [moving[place] for place in indices], settings, alpha).bfloat16()
        total = part if total is None else total + part
    assert total is not None
    return total.double()


def acting(members: Sequence[StepMember], alpha: float) -> list[StepMember]:
    """Return the rollouts that have a gradient."""
    return [m for m in members if m.scored.rollout.advantage or (alpha and m.scored.rollout.distilled)]


def num_microbatches(members: Sequence[StepMember], max_tokens: int) -> int:
    return len(list(microbatches([member.scored.rollout.sequence for member in acting(members, 1.0)], max_tokens)))


def measure(questions: int, folder: Path) -> list[str]:
    members = draw_members(questions, folder)
    rounded = load_model(model_folder("mini"), "bfloat16")
    exact = copy.deepcopy(rounded).double()
    grpo = gradient_of(exact, members, settings_of(questions, SMALL), 0.0)
    unit = gradient_of(exact, members, settings_of(questions, SMALL), 1.0) - grpo
    lines = [
        "| alpha | SD / GRPO | micro-batches | kept | noise | error of the gradient | signal to noise |",
        "|---|---|---|---|---|---|---|",
    ]
    without = {way: gradient_in(rounded, members, settings_of(questions, way.max_tokens), 0.0, way) for way in WAYS}
    for alpha in ALPHAS:
        sd = alpha * unit
        for way in WAYS:
            settings = settings_of(questions, way.max_tokens)
            whole = gradient_in(rounded, members, settings, alpha, way)
            left = whole - without[way]
            kept = float(left @ sd / (sd @ sd))
            noise = float((left - kept * sd).norm() / sd.norm())
            error = (whole - grpo - sd).norm()
            count = num_microbatches(members, way.max_tokens)
            ratio = float(sd.norm() / grpo.norm())
            lines.append(
                f"| {alpha:g} | {ratio:.4f} | {count}, {way.name} | {kept:.2f} | {noise:.2f} | "
                f"{float(error / grpo.norm()):.2%} | {float(sd.norm() / error):.2f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--results", type=Path, help="file whose table is replaced")
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(options.questions, Path(folder))
    command = f"`python benchmarks/precision.py --questions {options.questions}`, {machine()}"
    if options.results:
        put_results(options.results, "precision", [command, "", *lines])


if __name__ == "__main__":
    main()
