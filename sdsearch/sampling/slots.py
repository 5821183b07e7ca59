"""A KV cache with one slot a conversation, for batches whose rows differ in length.

Shapes: `R` slots, `N` rows of this forward, `T` new tokens, `H` KV heads, `S` cached tokens, `D` head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from sdsearch.model.visibility import Sees

_GROWTH = 256


class SlotCache(Cache):  # type: ignore[misc] # transformers is not read by mypy
    """Keys and values of up to `num_slots` conversations; a forward addresses a set of slots.

    Slots are kept compact by the caller: while all addressed slots are 0..N-1 the cached tensors are read as
    views, otherwise the addressed rows are gathered.
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.lengths_R = torch.zeros(num_slots, dtype=torch.long, device=device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._slots_N: Tensor | None = None
        self._columns_NT: Tensor | None = None
        self._num_rows = 0
        self._width = 0

    def address(self, slots_N: Tensor | int, num_new: int) -> Tensor:
        """Choose the slots of the next forward (an int n stands for slots 0..n-1) and return positions (N, T)."""
        if isinstance(slots_N, int):
            self._slots_N, lengths_N = None, self.lengths_R[:slots_N]
        else:
            self._slots_N, lengths_N = slots_N, self.lengths_R[slots_N]
        self._num_rows = len(lengths_N)
        self._columns_NT = lengths_N[:, None] + torch.arange(num_new, device=lengths_N.device)
        self._width = int(lengths_N.max()) + num_new
        return self._columns_NT

    def extend(self, lengths_N: Tensor) -> None:
        """Count the new tokens of each addressed row; what a forward wrote beyond them is void."""
        rows = slice(self._num_rows) if self._slots_N is None else self._slots_N
        self.lengths_R[rows] += lengths_N

    def mask(self, dtype: torch.dtype, sees: Sees) -> Tensor:
        """Return the additive mask (N, 1, T, S): each new token sees what the model lets its position see.

        A boolean one would be made into this by every layer anew.
        """
        assert self._columns_NT is not None, "address() comes first"
        columns_NT = self._columns_NT
        rows_N, columns_S = (torch.arange(size, device=columns_NT.device) for size in (self._num_rows, self._width))
        zero = rows_N.new_zeros(())
        seen_N1TS = sees(rows_N[:, None, None, None], zero, columns_NT[:, None, :, None], columns_S)
        return torch.zeros(seen_N1TS.shape, dtype=dtype, device=columns_S.device).masked_fill_(
            ~seen_N1TS, float("-inf")
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (N, H, T, D) and return those of the addressed rows (N, H, S, D)."""
        # Keys and values may differ in width.
        for store, states in ((self._keys, key_states), (self._values, value_states)):
            self._reserve(store, layer_idx, states)
        return (
            self._store(self._keys[layer_idx], key_states),
            self._store(self._values[layer_idx], value_states),
        )

    def _store(self, cached_RHSD: Tensor, new_NHTD: Tensor) -> Tensor:
        assert self._columns_NT is not None, "address() comes first"
        slots_N = self._slots_N
        rows_N = torch.arange(self._num_rows, device=new_NHTD.device) if slots_N is None else slots_N
        cached_RHSD[rows_N[:, None], :, self._columns_NT] = new_NHTD.transpose(1, 2)
        if slots_N is None:
            return cached_RHSD[: self._num_rows, :, : self._width]
        return cached_RHSD[slots_N, :, : self._width]

    def _reserve(self, store: list[Tensor], layer_idx: int, like_NHTD: Tensor) -> None:
        width = -(-self._width // _GROWTH) * _GROWTH
        shape = (len(self.lengths_R), like_NHTD.shape[1], width, like_NHTD.shape[3])
        if layer_idx == len(store):
            store.append(like_NHTD.new_zeros(shape))
        elif store[layer_idx].shape[2] < self._width:
            grown = like_NHTD.new_zeros(shape)
            grown[:, :, : store[layer_idx].shape[2]] = store[layer_idx]
            store[layer_idx] = grown

    def copy_slot(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds."""
        length = int(self.lengths_R[source])
        self.lengths_R[target] = length
        for store in (*self._keys, *self._values):
            store[target, :, :length] = store[source, :, :length]

    def swap_slots(self, first: int, second: int) -> None:
        """Exchange two slots."""
        if first == second:
            return
        pair, reverse = torch.tensor([first, second]), torch.tensor([second, first])
        length = int(self.lengths_R[pair].max())
        self.lengths_R[pair] = self.lengths_R[reverse]
        for store in (*self._keys, *self._values):
            kept = store[first, :, :length].clone()
            store[first, :, :length] = store[second, :, :length]
            store[second, :, :length] = kept

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._width

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self._width, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def _keep_no_more(self, *args: object, **kwargs: object) -> Any:
        raise NotImplementedError("its layers keep more of the past than keys and values (a state, or an index)")

    update_conv_state = update_recurrent_state = update_indexer = has_previous_state = _keep_no_more
