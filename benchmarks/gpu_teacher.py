"""Part c: the teacher pass and the head's chunks, and SD's share of update and teacher together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpu_common import GIGA, Bench, Shape
from gpu_steps import BLOCK, draw_blocks, draw_groups, settings_for, step_case
from gpu_update import REPEATS, SECONDS_A_SIZE, gradient_of, policy_of
from torch import nn

from schemas.records.rollout import Group
from schemas.records.score import RewardPart, Score
from schemas.settings.root import Settings
from sdsearch.credit.teacher import TargetTensors, TeacherSettings, compute_targets
from sdsearch.training.logprobs import sampled_tensor, sequence_logprobs
from sdsearch.training.loss import ScoredRollout, weigh
from sdsearch.training.loss_settings import LossSettings
from sdsearch.training.training_set import training_rollouts

CHUNKS = (512, 2048, 8192)


class NoWords:
    """A tokenizer for drawn tokens, whose text nobody reads."""

    eos_token_id = None

    def decode(self, token_ids: Sequence[int], **options: object) -> str:
        return ""

    def get_vocab(self) -> dict[str, int]:
        return {}


def run(bench: Bench) -> None:
    """Write a row a size and chunk of the head: teacher, update without and with distillation, and SD's share."""
    for shape in bench.shapes:
        for chunk in (32, 64) if bench.small else CHUNKS:
            with bench.case(SECONDS_A_SIZE[shape.name], size=shape.name, **{"head chunk": chunk}) as row:
                if "skip" not in row:
                    row.update(measure(bench, shape, chunk))


def measure(bench: Bench, shape: Shape, chunk: int) -> dict[str, Any]:
    """Return a row's figures; alpha is one, since its size costs nothing."""
    settings = settings_for(bench, update={"head_chunk": chunk})
    groups = draw_groups(step_case(bench), shape.vocabulary)
    with policy_of(bench, shape, "split", settings) as (model, _):
        teach = teaching(model, groups, shape, settings, 16 if bench.small else BLOCK)
        teacher_s, _ = bench.time(teach, REPEATS)
        teacher_peak = bench.peak_of(teach)
        scored = scored_rollouts(model, groups, teach(), settings)
        members = weigh(scored, settings.grpo)
        grpo_s, _ = bench.time(gradient_of(model, members, settings, alpha=0.0), REPEATS)
        both = gradient_of(model, members, settings, alpha=1.0)
        sd_s, spread = bench.time(both, REPEATS)
        update_peak = bench.peak_of(both)
    return {
        "teacher s": teacher_s,
        "teacher peak GB": teacher_peak / GIGA,
        "GRPO gradient s": grpo_s,
        "GRPO + SD gradient s": sd_s,
        "spread s": spread,
        "gradient peak GB": update_peak / GIGA,
        "SD share": 1 - grpo_s / (teacher_s + sd_s),
    }


def teaching(model: nn.Module, groups: Sequence[Group], shape: Shape, settings: Settings, block: int) -> Any:
    """Return the work of the teacher stage over the groups."""
    blocks = draw_blocks(groups, shape.vocabulary, block)

    def work() -> Any:
        return compute_targets(model, NoWords(), groups, blocks, TeacherSettings.of(settings))

    return work


def scored_rollouts(
    model: nn.Module, groups: Sequence[Group], taught: tuple[TargetTensors, Any, Any], settings: Settings
) -> list[ScoredRollout]:
    """Return what the update reads, with the policy's own log-probabilities as the sampler's and the reference's."""
    scores = [
        Score(
            rollout_id=rollout.id,
            group_id=group.id,
            em=0.0,
            f1=0.0,
            valid_format=True,
            golden=(),
            num_hits=0,
            num_golden_hits=0,
            reward=0.0,
            parts=(RewardPart(part="f1", value=0.0),),
            advantage=float(rollout.index - 2),
        )
        for group in groups
        for rollout in group.rollouts
    ]
    tensors, pointers, _ = taught
    rollouts = training_rollouts(groups, scores, pointers, tensors)
    own = sequence_logprobs(model, [rollout.sequence for rollout in rollouts], LossSettings.of(settings))
    pairs = zip(rollouts, own, strict=True)
    return [ScoredRollout(rollout, sampled_tensor(row.tolist()), None, row) for rollout, row in pairs]
