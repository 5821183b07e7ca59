"""The file of a checkpoint that holds the moving average of the policies up to its version, and its decay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import torch
from torch import Tensor

from storage.disk.tensors import load_tensors, save_tensors

# In a folder of its own: engines that load a checkpoint read every safetensors file beside the weights.
_FILE: Final = "teacher/average.safetensors"
_DECAY: Final = "decay"  # Names of parameters have a dot.


class Average(NamedTuple):
    """Averaged weights by the parameters' names, fp32, and what the average keeps of itself at a new version."""

    weights: dict[str, Tensor]
    decay: float


def save_average(folder: Path, average: Average) -> None:
    """Write the average into a checkpoint's folder."""
    save_tensors(folder / _FILE, {**average.weights, _DECAY: torch.tensor(average.decay, dtype=torch.float64)})


def read_average(folder: Path) -> Average | None:
    """Return what a checkpoint has of it, None where it has none; DamagedArtifactError when it cannot be read."""
    if not (folder / _FILE).is_file():
        return None
    tensors: Mapping[str, Tensor] = load_tensors(folder / _FILE)
    return Average({name: t for name, t in tensors.items() if name != _DECAY}, float(tensors[_DECAY]))
