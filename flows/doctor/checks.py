"""The doctor's checks of the model, of memory and of disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import httpx

from flows.doctor.footprint import CUDA_CONTEXT, ModelShape, TrainingNeeds, guessed_shape, shape_of
from flows.doctor.hardware import Hardware, free_bytes
from flows.doctor.hub import ModelFiles
from flows.doctor.needs import (
    PROGRAM,
    bytes_of_weight,
    cpu_bytes,
    disk_needs,
    engine_card_bytes,
    first_card_bytes,
    memory_needs,
    sampler_bytes,
    shards_of,
)
from schemas.commands import quoted
from schemas.errors import UserError, reason_of
from schemas.settings.cards import engine_numbers, engine_share, trainer_cards
from schemas.settings.retrieval import HFEncoderSettings
from schemas.settings.root import Settings
from sdsearch.connections import client_options
from storage.workspace import Workspace

_CONNECT_S = 1.0
_GATEWAY_ERRORS = {502, 503, 504}  # What a proxy says of a server that it cannot reach.
_ENCODER = 0.6e9


class Check(NamedTuple):
    """One row of the doctor's table; `remedy` says what to do where it is not ok."""

    name: str
    found: str
    needed: str
    ok: bool
    remedy: str = ""


def answers(name: str, url: str, remedy: str) -> Check:
    """Return whether something answers at a URL, reached as a run reaches it: through a proxy where there is one."""
    try:
        with httpx.Client(timeout=_CONNECT_S, **client_options([url], name)) as client:
            status = client.get(url).status_code
    except (httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.ReadError):
        status = 200  # What listens may be busy, or speak to those it knows alone.
    except httpx.HTTPError as error:
        return Check(name, f"no answer ({reason_of(error)})", url, False, remedy)
    except UserError as error:
        return Check(name, "not checked", url, False, str(error))
    reached = status not in _GATEWAY_ERRORS
    return Check(name, "answers" if reached else f"no answer (status {status})", url, reached, remedy)


def model_checks(settings: Settings, model: ModelFiles) -> Iterator[Check]:
    """Yield whether the model's weights and tokenizer are here."""
    path = settings.model.path
    remedy = f"hf download {quoted(path)}, or point model.path at a folder that has {', '.join(model.missing)}"
    weights = [name for name in model.missing if name != "tokenizer"]
    found = f"{_gb(model.weights_bytes)} of weights" if not weights else f"without {', '.join(weights[:3])}"
    yield Check("model", found, path, not weights, remedy)
    has_tokenizer = "tokenizer" not in model.missing
    yield Check("tokenizer", "there" if has_tokenizer else "not there", path, has_tokenizer, remedy)


def unknown_model(settings: Settings) -> Check:
    """Return the check of a model whose size neither its files nor its name tell."""
    remedy = "get the model first: its size is not known without its config.json"
    return Check("memory", "size of the model unknown", settings.model.path, False, remedy)


def memory_checks(settings: Settings, model: ModelFiles, hardware: Hardware, workspace: Workspace) -> list[Check]:
    """Return the checks of GPU, RAM and disk by estimate; none where the model's size is not known."""
    shape = shape_of(model.config) if model.config else None
    guess = "" if shape else ", guessed from the model's name"
    shape = shape or guessed_shape(settings.model.path)
    if shape is None:
        return []
    needs, ranks = memory_needs(settings, shape), settings.distributed.ranks
    here = settings.distributed.ranks_per_node
    parts = [_disk(settings, shape, workspace)]
    if settings.model.device == "cpu":
        wanted = cpu_bytes(settings, shape)
        each = f": {here} ranks of {_gb(needs.peak - CUDA_CONTEXT)} {_spread(settings)}" if ranks > 1 else ""
        return [_ram(wanted, hardware, f"{_gb(wanted)}{each}{guess}"), *parts]
    loading = needs.weights + PROGRAM if ranks == 1 else bytes_of_weight(settings) * shape.num_parameters + PROGRAM
    parts.insert(0, _ram(loading, hardware, f"{_gb(loading)} for loading{guess}"))
    if ranks > 1:
        parts.insert(0, _gpus_of_ranks(settings, needs, hardware, guess))
    if apart := engine_card_bytes(settings, shape):
        parts.insert(0, _gpus_of_sampler(settings, apart, hardware, guess))
    parts.insert(0, _gpu(settings, shape, needs, hardware, guess))
    return parts


def _spread(settings: Settings) -> str:
    shards = shards_of(settings.distributed)
    return f"(sharding {settings.distributed.sharding}: a copy over {shards})"


def _gpu(settings: Settings, shape: ModelShape, needs: TrainingNeeds, hardware: Hardware, guess: str) -> Check:
    """The device of the run's own process, which with ranks is the first rank's too."""
    wanted = first_card_bytes(settings, shape) + _encoder_bytes(settings)
    share = engine_share(settings)
    in_ranks = settings.distributed.ranks > 1
    what = (
        f"{_gb(wanted)}: weights {_gb(needs.weights)}, gradients {_gb(needs.gradients)}, optimiser "
        f"{_gb(needs.optimiser)}, reference {_gb(needs.reference)}, activations {_gb(needs.activations)}"
        f"{f', or a sampled batch {_gb(needs.sampling)}' if needs.sampling else ''}"
        f"{f', gathered {_gb(needs.gathered)}, to sample {_gb(sampler_bytes(settings, shape))}' if in_ranks else ''}"
        f"{f', vLLM {share:.0%} of the GPU' if share else ''}{guess}"
    )
    remedy = (
        "train where there is one of that size, or with update.gradient_checkpointing = true (fewer activations), "
        "model.tuning = 'lora' (no optimiser of all weights, no reference), a smaller sampling.gpu_memory_utilization "
        "or more distributed.ranks"
    )
    if not hardware.gpus:
        why = "torch sees no GPU" if hardware.torch_cuda else "this torch is built without CUDA"
        return Check("GPU", f"none ({why})", what, False, remedy)
    index = trainer_cards(settings)[0]
    if index >= len(hardware.gpus):
        return Check(
            "GPU", f"{len(hardware.gpus)}", settings.model.device, False, "choose a model.device that is there"
        )
    gpu = hardware.gpus[index]
    return Check("GPU", f"{gpu.name}, {_gb(gpu.total_bytes)}", what, gpu.total_bytes >= wanted, remedy)


def _gpus_of_ranks(settings: Settings, needs: TrainingNeeds, hardware: Hardware, guess: str) -> Check:
    """A device for each rank, large enough for its shards and what it gathers."""
    ranks = settings.distributed.ranks_per_node
    used = [hardware.gpus[number] for number in trainer_cards(settings) if number < len(hardware.gpus)]
    smallest = min((gpu.total_bytes for gpu in used), default=0)
    remedy = (
        f"lower distributed.ranks to the number of GPUs ({len(hardware.gpus)}), or spread a copy over more ranks: "
        "distributed.sharding = 'full'"
    )
    found = f"{len(hardware.gpus)}, the smallest with {_gb(smallest)}" if used else "none"
    wanted = f"{ranks} with {_gb(needs.peak)} each {_spread(settings)}{guess}"
    return Check("GPUs of ranks", found, wanted, len(used) == ranks and smallest >= needs.peak, remedy)


def _gpus_of_sampler(settings: Settings, wanted: float, hardware: Hardware, guess: str) -> Check:
    """A device for each process of an engine that samples apart from the trainer."""
    numbers = engine_numbers(settings)
    used = [hardware.gpus[number] for number in numbers if number < len(hardware.gpus)]
    smallest = min((gpu.total_bytes for gpu in used), default=0)
    remedy = "choose sampling.devices that are there, or raise sampling.gpu_memory_utilization"
    found = f"{len(used)} of {len(numbers)}, the smallest with {_gb(smallest)}" if used else "none"
    ok = len(used) == len(numbers) and smallest >= wanted
    return Check("GPUs of the sampler", found, f"{len(numbers)} with {_gb(wanted)} each{guess}", ok, remedy)


def _encoder_bytes(settings: Settings) -> float:
    """Return what the retriever's encoder takes of the policy's GPU."""
    encoder = getattr(settings.retrieval, "encoder", None)
    return _ENCODER if isinstance(encoder, HFEncoderSettings) and encoder.device == settings.model.device else 0.0


def _ram(wanted: float, hardware: Hardware, needed: str) -> Check:
    remedy = "use a machine with more memory, a smaller model, or a smaller update.max_tokens_per_microbatch"
    return Check("RAM", _gb(hardware.ram_bytes), needed, hardware.ram_bytes >= wanted, remedy)


def _disk(settings: Settings, shape: ModelShape, workspace: Workspace) -> Check:
    """The newest checkpoints, the best, the one being written; and the records of every rollout."""
    needs = disk_needs(settings, shape)
    rollouts = settings.iterations * settings.data.questions_per_iteration * settings.rollout.group_size
    free = free_bytes(workspace.root)
    without = (
        f" ({needs.num_versions - needs.num_with_optimiser} without {_gb(needs.optimiser)} of optimiser)"
        if settings.storage.optimiser_every > 1
        else ""
    )
    needed = (
        f"{_gb(needs.run)}: {needs.num_versions} checkpoints of {_gb(needs.version)}{without}, records of {rollouts} "
        "rollouts"
    )
    remedy = f"free some space at {workspace.root}, name another --workspace, lower storage.keep_checkpoints, or "
    remedy += "raise storage.optimiser_every"
    return Check("disk", f"{_gb(free)} free", needed, free >= needs.run, remedy)


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"
