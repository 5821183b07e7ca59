"""Over how many processes teacher and update are spread: how a run is computed, never what is computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import CardNumbers, Positive, Section


class DistributedSettings(Section):
    """Ranks that train one policy together (PyTorch's FSDP2 under its own elastic launcher)."""

    ranks: Positive = Field(
        default=1,
        description="Processes that the teacher and update stages run on, each with a device of its own; 1 is the "
        "run's own process.",
    )
    nodes: Positive = Field(
        default=1,
        description="Machines that the ranks are spread over, each with as many; all but the run's own join it with: "
        "sdsearch join.",
    )
    endpoint: str = Field(
        default="",
        pattern=r"^$|^[^\s:/\[\]]+:[0-9]{1,5}$",
        description="HOST:PORT of the run's machine, as the others reach it; read with more than one machine alone.",
    )
    devices: CardNumbers = Field(
        default=(),
        description="Numbers of the cards that the ranks of each machine compute on, one each; empty: the first ones.",
    )
    sharding: Literal["full", "replicate", "hybrid"] = Field(
        default="full",
        description="full: weights, gradients and optimiser are spread over the ranks (FSDP); replicate: each rank has "
        "a whole copy (DDP); hybrid: copies, each spread over shard_ranks ranks (HSDP).",
    )
    shard_ranks: Annotated[int, Field(ge=2)] = Field(
        default=2, description="Ranks that share one copy of the weights; read with sharding 'hybrid' alone."
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="Longest wait of a rank for another one, and of the run for a machine that is to join, seconds; "
        "then the stage fails.",
    )

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each machine, where there are ranks."""
        return self.ranks // self.nodes
