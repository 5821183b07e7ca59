"""Which cards sample and which train, and whether an engine must make room for the trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.settings.sampling import VllmSamplerSettings

if TYPE_CHECKING:
    from schemas.settings.root import Settings


def is_on_cards(settings: Settings) -> bool:
    """Tell whether the trainer computes on CUDA devices."""
    return settings.model.device.partition(":")[0] == "cuda"


def trainer_cards(settings: Settings) -> tuple[int, ...]:
    """Return the numbers of the cards of this machine that train, by local rank; none on a CPU.

    With one rank, which is the run's own process, it is the card of model.device.
    """
    distributed = settings.distributed
    if not is_on_cards(settings):
        return ()
    if distributed.ranks == 1:
        number = settings.model.device.partition(":")[2]
        return (int(number) if number.isdecimal() else 0,)
    return distributed.devices or tuple(range(distributed.ranks_per_node))


def engine_numbers(settings: Settings) -> tuple[int, ...]:
    """Return the numbers of the cards that were given to an engine; none where it takes the first ones."""
    return settings.sampling.devices if isinstance(settings.sampling, VllmSamplerSettings) else ()


def are_apart(settings: Settings) -> bool:
    """Tell whether an engine was given cards of its own, none of which trains."""
    given = set(engine_numbers(settings)) if is_on_cards(settings) else set()
    return bool(given) and not given & set(trainer_cards(settings))


def engine_sleeps(settings: Settings) -> bool:
    """Tell whether an engine frees its memory for the trainer, which is on the same cards."""
    sampling = settings.sampling
    return isinstance(sampling, VllmSamplerSettings) and sampling.sleep_while_training and not are_apart(settings)


def engine_share(settings: Settings) -> float:
    """Return the share of the trainer's cards that an engine on them takes, in [0, 1]."""
    sampling = settings.sampling
    if not isinstance(sampling, VllmSamplerSettings) or are_apart(settings):
        return 0.0
    return sampling.gpu_memory_utilization
