"""Sharded tensors as files: each rank writes whole tensors into a file of its own, and reads the rows that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from sdsearch.model.ranks import merged, num_ranks, rank, whole
from sdsearch.model.sharding import as_shard_of, own_rows
from storage.disk.files import write_bytes_atomic
from storage.disk.spread import (
    StoredTensors,
    TensorFile,
    TensorType,
    index_bytes,
    index_path,
    part_path,
    spread,
)
from storage.disk.tensors import TensorsDigest


def write_spread(
    path: Path,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype | None = None,
    digest: TensorsDigest | None = None,
) -> dict[Path, str]:
    """Write named tensors, each whole, over a file of each rank with an index; all ranks call it together.

    Every rank gathers one tensor at a time: no more than that is in its memory. dtype: what they become, where not
    what they are. digest: takes in what is written, in the order of the names. Returns the sha256 of each rank's file.
    """
    types = {name: TensorType(dtype or tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    parts = spread(types, num_ranks())
    own = parts[rank()] if rank() < len(parts) else []
    target = part_path(path, rank(), len(parts))
    hashes: dict[int, tuple[Path, str]] = {}
    with ExitStack() as opened:
        file = opened.enter_context(TensorFile(target, {name: types[name] for name in own})) if own else None
        for name in sorted(tensors):
            value = whole(tensors[name].detach())
            if name in own or digest is not None:
                value = value.to(types[name].dtype).cpu().contiguous()
            if file is not None and name in own:
                file.add(name, value)
            if digest is not None:
                digest.add(name, value)
            del value  # Before the next one is gathered.
    if file is not None:
        hashes[rank()] = (target, file.sha256)
    if rank() == 0 and len(parts) > 1:
        write_bytes_atomic(index_path(path), index_bytes(path, types, parts), path.parent)
    return dict(merged(hashes).values())


def read_shards(stored: StoredTensors, of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return stored tensors as this rank holds them.

    of: by stored name the weight that a tensor is spread like; scalars, such as AdamW's step count, stay whole.
    """
    return {name: _read(stored, name, weight) for name, weight in of.items()}


def _read(stored: StoredTensors, name: str, weight: Tensor) -> Tensor:
    rows = own_rows(weight)
    found = stored.whole(name) if rows == slice(None) or not stored.num_dims(name) else stored.rows(name, rows)
    return as_shard_of(weight, found) if found.dim() else found
