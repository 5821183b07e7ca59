"""Settings that cannot act beside others: worth a note where they were given, and no difference between two runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.settings.added import FREE, FREE_PARTS
from schemas.settings.cards import are_apart, is_on_cards
from schemas.settings.sampling import VllmSamplerSettings
from schemas.settings.strength import RetireSchedule

if TYPE_CHECKING:
    from schemas.settings.root import Settings

_HINDSIGHT = (
    "hindsight.masking",
    "hindsight.masking_options",
    "hindsight.labels",
    "hindsight.members",
    "hindsight.contrast",
    "hindsight.memory",
    "hindsight.answer",
    "hindsight.own_query",
    "hindsight.unsent_queries",
    "hindsight.homogeneous",
    "hindsight.rho",
    "hindsight.label_metric",
    "hindsight.max_block_tokens",
)
_DISTILLATION = (
    "distillation.alpha",
    "distillation.warmup_iterations",
    "distillation.strength",
    "distillation.schedule",
    "distillation.clip",
    "distillation.teacher",
    "distillation.ema_decay",
    "distillation.form",
    "distillation.gate",
    "distillation.gate_options",
    "distillation.positions",
    "distillation.divergence",
    "distillation.divergence_options",
    "distillation.support",
    "distillation.tail",
    "distillation.top_k",
)


_BLIND_GATES = ("none", "sigmoid", "influence", "attenuation")
"""Gates that do not look at the rollout's outcome; one of a person's own may."""


class Void(NamedTuple):
    """Settings that have no effect while something holds; `because` is None where that needs no note."""

    applies: Callable[[Settings], bool]
    names: tuple[str, ...]
    because: str | None


def _shows_no_label(s: Settings) -> bool:
    hindsight = s.hindsight
    unlabelled = hindsight.labels == "none" or hindsight.masking == "current_documents"
    schedule = s.distillation.schedule
    by_outcome = isinstance(schedule, RetireSchedule) and schedule.gap == "log_ratio"
    if by_outcome or s.rollout.retries or s.distillation.gate not in _BLIND_GATES:
        return False
    chooses = hindsight.members == "correct_only" or hindsight.homogeneous == "skip"
    return unlabelled and not (chooses or hindsight.memory or hindsight.own_query == "paraphrase")


VOID: Final[tuple[Void, ...]] = (
    Void(
        lambda s: not (s.distillation.enabled or s.rollout.retries),
        _HINDSIGHT,
        "distillation.enabled is false, so no block is built",
    ),
    Void(lambda s: not s.rollout.retries, ("rollout.retries_use",), "rollout.retries is 0"),
    # Whoever turns distillation off, or all of it into warm-up, is told that alone.
    Void(lambda s: not s.distils, (*_DISTILLATION, "distillation.enabled"), None),
    Void(lambda s: not (s.distils or s.rollout.retries), _HINDSIGHT, None),
    Void(lambda s: not s.distils, ("update.gradient_parts_every",), "the gradient has one part, since alpha is zero"),
    Void(
        lambda s: s.distils and s.distillation.form == "advantage",
        (
            "distillation.divergence",
            "distillation.divergence_options",
            "distillation.support",
            "distillation.tail",
            "distillation.top_k",
        ),
        "distillation.form 'advantage' reads both log-probabilities of the sampled tokens alone",
    ),
    Void(
        lambda s: s.distillation.support == "full",
        ("distillation.top_k", "distillation.tail"),
        "distillation.support 'full' compares the whole vocabulary",
    ),
    Void(
        lambda s: s.distillation.teacher != "ema",
        ("distillation.ema_decay",),
        "distillation.teacher is not 'ema'",
    ),
    Void(
        _shows_no_label,
        ("hindsight.rho", "hindsight.label_metric"),
        "no block shows a label, so they decide the tables' column outcome alone",
    ),
    Void(
        lambda s: s.grpo.aggregation != "constant",
        ("grpo.constant_tokens",),
        "grpo.aggregation is not 'constant'",
    ),
    Void(lambda s: s.grpo.filter != "resample", ("grpo.resample_rounds",), "grpo.filter is not 'resample'"),
    Void(
        lambda s: s.grpo.old_logprobs == "trainer" and s.num_steps_per_iteration == 1,
        ("grpo.clip_low", "grpo.clip_high"),
        "with grpo.old_logprobs 'trainer' and one optimiser step an iteration every ratio is 1",
    ),
    Void(
        lambda s: s.model.tuning == "full",
        ("model.lora_rank", "model.lora_alpha", "model.lora_targets"),
        "model.tuning is 'full'",
    ),
    Void(
        lambda s: s.reward.name != "answer",
        ("reward.metric", "reward.format_bonus"),
        "they belong to reward 'answer'; reward.name is another",
    ),
    Void(lambda s: bool(s.data.train), ("data.train_split",), "data.train names the splits that are trained on"),
    Void(lambda s: not s.retrieval.cache, ("retrieval.cache_max_entries",), "retrieval.cache is false"),
    Void(
        lambda s: s.evaluation.every > s.iterations,
        ("evaluation.every",),
        "it is above iterations, so start and end alone are evaluated",
    ),
    Void(
        lambda s: s.distributed.ranks == 1,
        (
            "distributed.nodes",
            "distributed.devices",
            "distributed.endpoint",
            "distributed.sharding",
            "distributed.shard_ranks",
            "distributed.timeout_s",
        ),
        "distributed.ranks is 1",
    ),
    Void(
        lambda s: s.distributed.ranks > 1 and s.distributed.nodes == 1,
        ("distributed.endpoint",),
        "distributed.nodes is 1",
    ),
    Void(
        lambda s: s.distributed.ranks > 1 and s.distributed.sharding != "hybrid",
        ("distributed.shard_ranks",),
        "distributed.sharding is not 'hybrid'",
    ),
    Void(
        lambda s: s.distributed.ranks > 1 and not is_on_cards(s),
        ("distributed.devices",),
        "model.device is no CUDA device",
    ),
    Void(
        lambda s: isinstance(s.sampling, VllmSamplerSettings) and not is_on_cards(s),
        ("sampling.devices",),
        "model.device is no CUDA device",
    ),
    Void(
        are_apart,
        ("sampling.sleep_while_training",),
        "sampling.devices has none of the cards that train, which need no room there",
    ),
    Void(lambda s: s.evaluation.num_questions == 0, ("evaluation.seed",), "all questions are evaluated on, none drawn"),
)


def void_notes(settings: Settings) -> list[str]:
    """Return a sentence for each reason why settings that are not at their defaults have no effect."""
    sentences = []
    for void in VOID:
        if not (void.because and void.applies(settings)):
            continue
        given = [name for name in void.names if _value(settings, name) != _default(settings, name)]
        if given:
            sentences.append(f"{', '.join(given)} {'has' if len(given) == 1 else 'have'} no effect: {void.because}")
    return sentences


def effective(settings: Settings) -> Settings:
    """Return the settings with whatever has no effect on training at its default: what trains alike is equal."""
    changes: dict[str, dict[str, Any]] = {"hindsight": {"max_block_tokens": settings.hindsight.block_tokens or 0}}
    for name in FREE_PARTS:
        section, _, field = name.partition(".")
        if field in type(getattr(settings, section)).model_fields:
            changes.setdefault(section, {})[field] = _default(settings, name)
    if not settings.distils:
        changes["distillation"] = {"enabled": False}
    for void in VOID:
        for name in void.names if void.applies(settings) else ():
            section, _, field = name.partition(".")
            if name != "distillation.enabled":
                changes.setdefault(section, {})[field] = _default(settings, name)
    sections = {name: getattr(settings, name).model_copy(update=update) for name, update in changes.items()}
    untrained = {name: type(getattr(settings, name))() for name in ("evaluation", "storage", *FREE)}
    return settings.model_copy(update={**sections, **untrained})


def _value(settings: Settings, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(settings, section), field)


def _default(settings: Settings, name: str) -> Any:
    section, _, field = name.partition(".")
    return type(getattr(settings, section)).model_fields[field].get_default(call_default_factory=True)
