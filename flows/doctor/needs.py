"""What a run's settings need of memory and disk, by the estimates of `footprint`; for the doctor and for plans."""

from __future__ import annotations

from typing import Final, NamedTuple, assert_never

from flows.doctor.footprint import (
    CUDA_CONTEXT,
    ModelShape,
    TrainingNeeds,
    checkpoint_bytes,
    device_needs,
    sampling_bytes,
    training_needs,
    versions_held,
)
from schemas.settings.cards import are_apart, engine_share, engine_sleeps
from schemas.settings.distributed import DistributedSettings
from schemas.settings.root import Settings
from schemas.settings.sampling import TransformersSamplerSettings, VllmSamplerSettings

PROGRAM: Final = 1.2e9
"""Bytes of Python with torch, transformers and Prefect's client."""
_ROLLOUT: Final = (
    30e3  # What a rollout's records and rows take, mean; a distilled query token takes top_k * 8 bytes more.
)
_QUERY_TOKENS: Final = 60
DATABASE: Final = 16e6
"""Bytes of the database with few rows: it gives every column of every table a block."""


class DiskNeeds(NamedTuple):
    """What a run leaves on its disk, bytes.

    num_versions: checkpoints that are there at one time, at most. num_with_optimiser: those of them that have the
    optimiser's state. records: of one iteration.
    """

    num_versions: int
    num_with_optimiser: int
    weights: float
    optimiser: float
    records: float
    iterations: int

    @property
    def version(self) -> float:
        """A checkpoint with its optimiser."""
        return self.weights + self.optimiser

    @property
    def run(self) -> float:
        """The most that the run takes, and the database with it."""
        kept = self.num_versions * self.weights + self.num_with_optimiser * self.optimiser
        return kept + self.iterations * self.records + DATABASE


def lora_rank(settings: Settings) -> int | None:
    """Return the rank of the adapters, None where all weights are tuned."""
    return settings.model.lora_rank if settings.model.tuning == "lora" else None


def shards_of(distributed: DistributedSettings) -> int | None:
    """Return the ranks that one copy of the weights is spread over, None without ranks."""
    if distributed.ranks == 1:
        return None
    match distributed.sharding:
        case "full":
            return distributed.ranks
        case "replicate":
            return 1
        case "hybrid":
            return distributed.shard_ranks
        case unknown:
            assert_never(unknown)


def bytes_of_weight(settings: Settings) -> int:
    """Return the bytes of a weight as the model computes with it."""
    return 2 if settings.model.dtype == "bfloat16" else 4


def conversations_at_once(settings: Settings) -> int:
    """Return the most that are generated in one batch with transformers, in training or in an evaluation."""
    rollout, evaluation = settings.rollout, settings.evaluation
    sampled = min(settings.data.questions_per_iteration, rollout.questions_per_batch) * rollout.group_size
    # Zero questions are all of a set.
    asked = [evaluation.num_questions, *(each.num_questions for each in evaluation.sets.values())]
    batch = rollout.questions_per_evaluation_batch
    return max(sampled, *(min(number or batch, batch) for number in asked))


def batch_bytes(settings: Settings, shape: ModelShape) -> float:
    """Return what a batch takes of the run's own process while it samples with transformers; 0 for engines."""
    if not isinstance(settings.sampling, TransformersSamplerSettings):
        return 0.0
    return sampling_bytes(
        shape,
        bytes_each=bytes_of_weight(settings),
        conversations=conversations_at_once(settings),
        longest=settings.longest_conversation,
        reply=settings.rollout.max_observation_tokens,
    )


def memory_needs(settings: Settings, shape: ModelShape, *, in_ranks: bool = True) -> TrainingNeeds:
    """Return what an update, or what is sampled, takes of a device.

    Of each rank's, where there are ranks and they are not left out: these do not sample.
    """
    needs = training_needs(
        shape,
        bytes_each=bytes_of_weight(settings),
        lora_rank=lora_rank(settings),
        has_reference=settings.grpo.kl_coefficient > 0 or settings.distillation.teacher == "initial",
        measures_parts=settings.update.gradient_parts_every > 0,
        tokens=min(
            settings.update.max_tokens_per_microbatch, settings.update.rollouts_per_step * settings.longest_conversation
        ),
        head_chunk=settings.update.head_chunk,
        recomputes=settings.update.gradient_checkpointing,
        shards=shards_of(settings.distributed) if in_ranks else None,
    )
    return needs._replace(sampling=batch_bytes(settings, shape)) if settings.distributed.ranks == 1 else needs


def disk_needs(settings: Settings, shape: ModelShape) -> DiskNeeds:
    """Return what a run leaves on its disk: a checkpoint is the same for any number of ranks."""
    kept = settings.storage
    needs = memory_needs(settings, shape, in_ranks=False)
    number, with_optimiser = versions_held(kept.keep_checkpoints, kept.optimiser_every, settings.iterations)
    distilled = settings.distillation.top_k * 8 * _QUERY_TOKENS if settings.distillation.enabled else 0
    rollouts = settings.data.questions_per_iteration * settings.rollout.group_size
    return DiskNeeds(
        num_versions=number,
        num_with_optimiser=with_optimiser,
        weights=checkpoint_bytes(needs, lora_rank(settings)) - needs.optimiser,
        optimiser=needs.optimiser,
        records=rollouts * (_ROLLOUT + distilled),
        iterations=settings.iterations,
    )


def sampler_policy_bytes(settings: Settings, shape: ModelShape) -> float:
    """Return what the policy takes that, with ranks, the run's own process samples with; 0 without ranks."""
    return float(bytes_of_weight(settings) * shape.num_parameters) if settings.distributed.ranks > 1 else 0.0


def sampler_bytes(settings: Settings, shape: ModelShape) -> float:
    """Return what, with ranks, the run's own process takes beside them: a policy, and a batch that it samples."""
    own = sampler_policy_bytes(settings, shape)
    return own + batch_bytes(settings, shape) if own else 0.0


def first_card_bytes(settings: Settings, shape: ModelShape) -> float:
    """Return what the device of the run's own process must have: an update's memory, and what samples on it."""
    needs = memory_needs(settings, shape)
    return device_needs(needs, engine_share(settings), engine_sleeps(settings)) + sampler_bytes(settings, shape)


def engine_card_bytes(settings: Settings, shape: ModelShape) -> float:
    """Return what a card that samples alone must have: the engine's share of it holds its part of the weights."""
    sampling = settings.sampling
    if not isinstance(sampling, VllmSamplerSettings) or not are_apart(settings):
        return 0.0
    weights = bytes_of_weight(settings) * shape.num_parameters / sampling.tensor_parallel_size
    return (weights + CUDA_CONTEXT) / sampling.gpu_memory_utilization


def cpu_bytes(settings: Settings, shape: ModelShape) -> float:
    """Return what training on a CPU takes of the machine's memory: its ranks' processes, and the run's own."""
    each = memory_needs(settings, shape).peak - CUDA_CONTEXT + PROGRAM
    if settings.distributed.ranks == 1:
        return each
    return settings.distributed.ranks_per_node * each + sampler_bytes(settings, shape) + PROGRAM
