"""Functions that several processes call together, as the ranks of a run do: gloo on the CPU.

The processes are started anew: a fork of a process with threads may die.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what each rank's call returned; an error in one of them is raised."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _one, (ranks, folder, function, arguments), nprocs=ranks, start_method="spawn", join=True, daemon=True
        )
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _one(rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # As ranks of a run end: threads of gloo may abort an interpreter that ends.
