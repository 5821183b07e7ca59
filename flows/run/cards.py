"""The CUDA devices that this process may use, for processes that each get one of them."""

from __future__ import annotations

import os


def cards_of(device: str) -> tuple[str, ...]:
    """Return the names that CUDA_VISIBLE_DEVICES knows the cards by where `device` is 'cuda', else none.

    `device` is a `model.device`; one with a number has chosen its card already.
    """
    if device != "cuda":
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))
