"""What a run would take of memory, time and disk: measured where a run did it here, computed or guessed where none did.

Time is counted in operations: 2 a weight and token for a forward pass, 6 for one with its backward pass (4 with LoRA,
whose frozen weights get no gradient), 2 more where layers are computed again. Generation reads the weights once for
all turns that are generated at one time. Attention's own operations and the time in which nothing computes are not
counted.
"""

from __future__ import annotations

from typing import Final, NamedTuple, assert_never

from flows.doctor.footprint import CUDA_CONTEXT, ModelShape
from flows.doctor.needs import (
    DATABASE,
    PROGRAM,
    batch_bytes,
    bytes_of_weight,
    cpu_bytes,
    disk_needs,
    first_card_bytes,
    memory_needs,
    sampler_policy_bytes,
)
from flows.plan.cards import Card
from flows.plan.measured import Measured
from schemas.records.plan import Figure, Source, Unit
from schemas.settings.root import Settings
from schemas.settings.sampling import (
    TransformersSamplerSettings,
    VllmSamplerSettings,
    VllmServerSamplerSettings,
)

# Shares of the longest that a conversation may be, and of the tokens that it may sample: by guess.
_CONVERSATION_SHARE: Final = 0.45
_SAMPLED_SHARE: Final = 0.3
# What this process does a rollout, seconds: scores, blocks, records, rows.
_ROLLOUT_S: Final = 2e-3
# transformers pads its batches and stops for each token in Python: its share of what the bandwidth allows.
_TRANSFORMERS_SHARE: Final = 0.2


class Planned(NamedTuple):
    """What a plan is made of: settings with their ranks, the model, the card, and what was measured, if anything.

    is_here: the plan is for this machine, so that seconds that were measured here count. knows_shape: the model's
    configuration was read, rather than its name.
    """

    settings: Settings
    shape: ModelShape
    card: Card
    measured: Measured | None
    is_here: bool
    knows_shape: bool

    @property
    def timed(self) -> Measured | None:
        """The measured run whose seconds count."""
        measured, ranks = self.measured, self.settings.distributed.ranks
        return measured if self.is_here and measured and measured.num_ranks == ranks else None

    def computed(self, value: float, unit: Unit = "bytes") -> Figure:
        """Return a figure that follows from the settings and the model's shape."""
        return Figure(value=value, unit=unit, source="computed" if self.knows_shape else "guessed")


def workload(planned: Planned) -> dict[str, Figure]:
    """Return how many rollouts an iteration samples, and their tokens."""
    settings, measured = planned.settings, planned.measured
    rollouts = settings.data.questions_per_iteration * settings.rollout.group_size
    most = (settings.rollout.max_searches + 1) * settings.rollout.max_new_tokens
    sampled, learnt = most * _SAMPLED_SHARE, settings.longest_conversation * _CONVERSATION_SHARE * rollouts
    source: Source = "measured" if measured else "guessed"
    if measured:
        sampled, learnt = measured.sampled_per_rollout, measured.learnt_tokens
    return {
        "rollouts": Figure(value=rollouts, unit="rollouts", source="computed"),
        "sampled tokens": Figure(value=sampled * rollouts, unit="tokens", source=source),
        "learnt tokens": Figure(value=learnt, unit="tokens", source=source),
    }


def memory(planned: Planned) -> dict[str, Figure]:
    """Return what lies in the memory of the fullest card, or of this machine; `card` is all of it."""
    settings, shape = planned.settings, planned.shape
    needs, on_cpu = memory_needs(settings, shape), settings.model.device == "cpu"
    parts = {
        "weights": planned.computed(needs.weights),
        "gradients": planned.computed(needs.gradients),
        "optimiser": planned.computed(needs.optimiser),
        "reference": planned.computed(needs.reference),
        "gathered": planned.computed(needs.gathered),
        "activations": Figure(value=needs.activations, unit="bytes", source="guessed"),
        "a sampled batch": Figure(value=batch_bytes(settings, shape), unit="bytes", source="guessed"),
        "policy to sample": planned.computed(sampler_policy_bytes(settings, shape)),
        "program" if on_cpu else "context": Figure(
            value=PROGRAM if on_cpu else CUDA_CONTEXT, unit="bytes", source="guessed"
        ),
    }
    whole = cpu_bytes(settings, shape) if on_cpu else first_card_bytes(settings, shape)
    engine = whole - sum(part.value for part in parts.values()) if not on_cpu else 0.0
    if engine > 0 and isinstance(settings.sampling, VllmSamplerSettings):
        parts["engine"] = Figure(value=engine, unit="bytes", source="guessed")
    kept = {name: part for name, part in parts.items() if part.value}
    if not on_cpu:
        kept["card of the other ranks"] = Figure(value=needs.peak, unit="bytes", source="guessed")
    return {**kept, "machine" if on_cpu else "card": Figure(value=whole, unit="bytes", source="guessed")}


def seconds(planned: Planned, work: dict[str, Figure]) -> dict[str, Figure]:
    """Return the duration of each stage of an iteration, of an iteration, of an evaluation, and of the run."""
    settings, timed = planned.settings, planned.timed
    guessed = _guessed_seconds(planned, work)
    stages = {stage: _timed(value, timed, stage) for stage, value in guessed.items()}
    evaluation = stages.pop("evaluate")
    iteration = _sum(list(stages.values()))
    last, every = settings.iterations, settings.evaluation.every
    num_evaluations = 1 + last // every + bool(last % every)
    whole = settings.iterations * iteration.value + num_evaluations * evaluation.value
    source = "measured" if {iteration.source, evaluation.source} == {"measured"} else "guessed"
    return {
        **stages,
        "iteration": iteration,
        "an evaluation": evaluation,
        # What will be sampled later is not known: a mean that was measured is still a guess of the rest.
        "run": Figure(value=whole, unit="seconds", source="computed" if source == "measured" else "guessed"),
    }


def disk(planned: Planned) -> dict[str, Figure]:
    """Return what a checkpoint, an iteration's records and the whole run take."""
    needs, measured = disk_needs(planned.settings, planned.shape), planned.measured
    version, records = planned.computed(needs.version), Figure(value=needs.records, unit="bytes", source="guessed")
    if measured and measured.checkpoint_bytes:
        version = Figure(value=measured.checkpoint_bytes, unit="bytes", source="measured")
        needs = needs._replace(weights=version.value - needs.optimiser)
    if measured:
        records = Figure(value=measured.record_bytes, unit="bytes", source="measured")
        needs = needs._replace(records=measured.record_bytes)
    source: Source = "computed" if {version.source, records.source} == {"measured"} else "guessed"
    return {
        "checkpoint": version,
        "records of an iteration": records,
        "database": Figure(value=DATABASE, unit="bytes", source="guessed"),
        f"run, with {needs.num_versions} checkpoints": Figure(value=needs.run, unit="bytes", source=source),
    }


def _timed(value: float, timed: Measured | None, stage: str) -> Figure:
    if timed and stage in timed.seconds:
        return Figure(value=timed.seconds[stage], unit="seconds", source="measured")
    return Figure(value=value, unit="seconds", source="guessed")


def _sum(figures: list[Figure]) -> Figure:
    source: Source = "measured" if all(figure.source == "measured" for figure in figures) else "guessed"
    return Figure(value=sum(figure.value for figure in figures), unit=figures[0].unit, source=source)


def _guessed_seconds(planned: Planned, work: dict[str, Figure]) -> dict[str, float]:
    settings, card, parameters = planned.settings, planned.card, planned.shape.num_parameters
    rollouts, sampled, learnt = (work[name].value for name in ("rollouts", "sampled tokens", "learnt tokens"))
    ranks = settings.distributed.ranks if settings.model.device != "cpu" else 1
    forward = 2 * parameters * learnt / (ranks * card.operations * card.forward_share)
    backward = 2 if settings.model.tuning == "lora" else 4
    again = 2 if settings.update.gradient_checkpointing else 0
    passes = (2 + backward + again) * parameters * learnt / (ranks * card.operations * card.train_share)
    # The policy's own log-probabilities, and the reference's where KL is measured.
    scored = forward * (1 + (settings.grpo.kl_coefficient > 0))
    rate = _sampled_per_s(planned, rollouts)
    asked = settings.evaluation.num_questions * len(settings.evaluation.modes)
    return {
        "sample": sampled / rate,
        "score": rollouts * _ROLLOUT_S,
        "hindsight": rollouts * _ROLLOUT_S,
        "teacher": forward if settings.distils else 0.0,
        "update": scored + settings.update.epochs * passes,
        "evaluate": asked * sampled / rollouts / rate,
    }


def _sampled_per_s(planned: Planned, rollouts: float) -> float:
    """Return the tokens that are generated in a second: bound by reading the weights, or by the operations."""
    settings, card, shape = planned.settings, planned.card, planned.shape
    match settings.sampling:
        case TransformersSamplerSettings():
            copies, share = 1, _TRANSFORMERS_SHARE
            at_once = min(rollouts, settings.rollout.questions_per_batch * settings.rollout.group_size)
        case VllmSamplerSettings(max_num_seqs=most, data_parallel_size=copies):
            share, at_once = 1.0, min(rollouts, most)
        case VllmServerSamplerSettings(max_num_seqs=most, urls=urls):
            copies, share, at_once = len(urls), 1.0, min(rollouts, most)
        case unknown:
            assert_never(unknown)
    read = at_once * card.bandwidth * card.read_share / (bytes_of_weight(settings) * shape.num_parameters)
    computed = card.operations * card.forward_share / (2 * shape.num_parameters)
    return copies * share * min(read, computed)
