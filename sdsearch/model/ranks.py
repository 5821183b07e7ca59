"""Several processes that train one policy: who is which, and what they tell one another.

Without a process group there is one rank, and nothing here computes or sends anything. The weights of the losses'
tokens are fixed over a whole optimiser step, so that what the ranks compute is summed, never averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def num_ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def in_step(batches: Sequence[T]) -> list[T | None]:
    """Return a rank's batches, and None for each further round that another rank needs; all ranks call it.

    Sharded weights are gathered by all ranks together, so all make equally many passes.
    """
    longest = torch.tensor(len(batches))
    if num_ranks() > 1:
        dist.all_reduce(longest, dist.ReduceOp.MAX)
    return [*batches, *[None] * (int(longest) - len(batches))]


def merged(own: Mapping[int, T]) -> dict[int, T]:
    """Return what all ranks have, by its number; all ranks call it."""
    if num_ranks() == 1:
        return dict(own)
    parts: list[dict[int, T]] = [{}] * num_ranks()
    dist.all_gather_object(parts, dict(own))
    return {number: item for part in parts for number, item in part.items()}


def told_by_first(value: T | None) -> T:
    """Return the first rank's value on every rank; all ranks call it."""
    box: list[T | None] = [value]
    if num_ranks() > 1:
        dist.broadcast_object_list(box, src=0)
    (told,) = box
    return told  # type: ignore[return-value] # The first rank's is a value.


def totals(sums: Mapping[str, Tensor], largest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums and the maxima of scalars over all ranks, in float64; all ranks call it, with the same names.

    With one rank they are returned as they are.
    """
    if num_ranks() == 1:
        return {**sums, **largest}
    result: dict[str, Tensor] = {}
    for values, operation in ((sums, dist.ReduceOp.SUM), (largest, dist.ReduceOp.MAX)):
        packed = torch.stack([value.double() for value in values.values()])
        dist.all_reduce(packed, operation)
        result.update(zip(values, packed.unbind(), strict=True))
    return result


def whole(tensor: Tensor) -> Tensor:
    """Return a sharded tensor as a plain one on every rank, a plain one as it is; all ranks call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
