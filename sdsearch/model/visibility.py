"""Who sees whom: rows of trees, and a model's own masks (windows, chunks) laid over them.

transformers has a model build its masks by asking a function registered for its attention, once for each kind of
layer. While `masks_from` holds, that question is answered for a row of trees or for the rows of a sampler's cache:
the model's own rule (which positions a position sees) stays the model's own.
Shapes: `T` tokens of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Whether a query sees a key: (row, head, query's position, key's position) to a boolean tensor, broadcast."""


_NO_TENSOR: Final = "it attends by code of its own, which takes no row of several texts"


@dataclass(frozen=True)
class Tree:
    """A context of `num_context` tokens, then its branches, as they stand in the row."""

    num_context: int
    branches: tuple[int, ...]  # tokens of each continuation; 0 for one that only the context predicts

    @property
    def num_tokens(self) -> int:
        return self.num_context + sum(self.branches)


@dataclass(frozen=True)
class TreeLayout:
    """The trees of a row, one after another; a token sees its tree's context and its own branch up to itself."""

    trees: tuple[Tree, ...]

    def position_ids(self) -> Tensor:
        """Return the positions (1, T), which restart after the context in every branch."""
        pieces = []
        for tree in self.trees:
            ends = [tree.num_context + length for length in tree.branches]
            pieces += [torch.arange(tree.num_context), *(torch.arange(tree.num_context, end) for end in ends)]
        return torch.cat(pieces)[None]

    def sections(self) -> list[tuple[int, int | None]]:
        """Return each run's number of tokens, and which run is its context (None: it is one itself)."""
        sections: list[tuple[int, int | None]] = []
        for tree in self.trees:
            context = len(sections)
            sections += [(tree.num_context, None), *((length, context) for length in tree.branches)]
        return sections


class TreeMask:
    """What the layers of one kind get as their mask: a row's layout, and which positions a position sees there.

    It stands where a mask tensor would, so it reaches the attention of every layer, also when gradient checkpointing
    computes the layer again.
    """

    def __init__(self, layout: TreeLayout, sees: Sees) -> None:
        self.layout = layout
        self.sees = sees
        self.kept: dict[Any, Any] = {}  # What an attention derives from it, for the layers that follow.

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_NO_TENSOR)

    def __radd__(self, scores: Tensor) -> Tensor:
        raise TypeError(_NO_TENSOR)

    def between(self, num_own: int, num_seen: int, device: torch.device) -> Tensor | None:
        """Return which of `num_seen` tokens from the first on each of their last `num_own` sees.

        None: all up to itself, from the first.
        """
        key = (num_own, num_seen, device)
        if key not in self.kept:
            self.kept[key] = self._between(num_own, num_seen, device)
        kept: Tensor | None = self.kept[key]
        return kept

    def _between(self, num_own: int, num_seen: int, device: torch.device) -> Tensor | None:
        positions = torch.arange(num_seen, device=device)
        behind = positions[num_seen - num_own :, None] - positions
        if self.sees is causal_mask_function:
            return None if num_own == num_seen else behind >= 0
        zero = positions.new_zeros(())
        seen = self.sees(zero, zero, positions[num_seen - num_own :, None], positions)
        return None if num_own == num_seen and torch.equal(seen, behind >= 0) else seen


_MAKE: ContextVar[Callable[[Sees], Any] | None] = ContextVar("_MAKE", default=None)


@contextmanager
def masks_from(make: Callable[[Sees], Any]) -> Iterator[None]:
    """Let `make` turn a model's rule of who sees whom into what its attention gets as the mask."""
    token = _MAKE.set(make)
    try:
        yield
    finally:
        _MAKE.reset(token)


def own_mask(*args: Any, mask_function: Sees = causal_mask_function, **kwargs: Any) -> Any:
    """Return the mask that transformers asks for, by `masks_from` where that holds, otherwise as SDPA's."""
    make = _MAKE.get()
    return sdpa_mask(*args, mask_function=mask_function, **kwargs) if make is None else make(mask_function)
