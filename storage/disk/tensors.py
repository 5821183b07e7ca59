"""Tensors as safetensors files: nothing here loads a pickle.

torch is imported on use, so that commands which only read tables start quickly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from storage.disk.spread import part_files
from storage.errors import DamagedArtifactError

if TYPE_CHECKING:
    from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors, making the file's folder; tensors that share memory are stored apart."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    seen: set[int] = set()
    save_file({name: _standalone(tensor, seen) for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors of a file, or of the parts in its place, into the CPU's memory.

    Raises DamagedArtifactError for what is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for part in part_files(path):
        try:
            tensors |= load_file(part)
        except (SafetensorError, OSError) as error:
            raise DamagedArtifactError(
                f"{part} cannot be read as safetensors ({error}); run the stage that wrote it again"
            ) from error
    return tensors


class TensorsDigest:
    """The sha256 over names, types, shapes and bytes of tensors, which are added in the order of their names."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, name: str, tensor: Tensor) -> None:
        """Take in a tensor, wherever it lies."""
        import torch

        tensor = tensor.detach().cpu().contiguous()
        self._digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        self._digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)

    @property
    def sha256(self) -> str:
        """The hash (hex) of what was added so far."""
        return self._digest.hexdigest()


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) over names, types, shapes and bytes, whatever the order of the mapping."""
    digest = TensorsDigest()
    for name in sorted(tensors):
        digest.add(name, tensors[name])
    return digest.sha256


def _standalone(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return a contiguous CPU tensor that shares no memory, which safetensors asks for; copies only where needed."""
    tensor = tensor.detach().cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.numel() * tensor.element_size() or storage.data_ptr() in seen:
        return tensor.clone()
    seen.add(storage.data_ptr())
    return tensor
