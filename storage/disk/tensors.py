"""Tensors as safetensors files: nothing here loads a pickle.

torch is imported on use, so that commands which only read tables start quickly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Read named tensors into the CPU's memory; DamagedArtifactError when it is no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedArtifactError(
            f"{path} cannot be read as safetensors ({error}); run the stage that wrote it again"
        ) from error
    return tensors


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) over names, types, shapes and bytes, whatever the order of the mapping."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + b"\n")
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _standalone(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return a contiguous CPU tensor that shares no memory, which safetensors asks for; copies only where needed."""
    tensor = tensor.detach().cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.nbytes() != tensor.numel() * tensor.element_size() or storage.data_ptr() in seen:
        return tensor.clone()
    seen.add(storage.data_ptr())
    return tensor
