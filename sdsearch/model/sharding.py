"""A policy whose weights, gradients and optimiser are spread over the ranks: PyTorch's FSDP2, a shard a decoder layer.

Without it every function here leaves a model and its forward passes as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TypeVar, assert_never

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from schemas.errors import UserError
from schemas.settings.distributed import DistributedSettings
from sdsearch.model.policy import causal_lm
from sdsearch.model.ranks import num_ranks

T = TypeVar("T")
_PASS = "sdsearch_pass"
_IN_PASS = "sdsearch_in_pass"


def rank_mesh(device: str, settings: DistributedSettings) -> DeviceMesh:
    """Return all ranks as FSDP takes them: one dimension to shard over, or copies times the ranks of one copy.

    device: torch's, such as cuda:0, of which the type counts.
    """
    kind, ranks = torch.device(device).type, num_ranks()
    names = ("copies", "shards")
    match settings.sharding:
        case "full":
            return init_device_mesh(kind, (ranks,))
        case "replicate":
            return init_device_mesh(kind, (ranks, 1), mesh_dim_names=names)
        case "hybrid":
            return init_device_mesh(kind, (ranks // settings.shard_ranks, settings.shard_ranks), mesh_dim_names=names)
        case unknown:
            assert_never(unknown)


def shard(model: nn.Module, mesh: DeviceMesh, compute: torch.dtype | None = None) -> None:
    """Spread a policy over the ranks of a mesh, in place and onto its device; every rank has the same weights before.

    mesh: one dimension to shard over, or two, copies and then the ranks of one copy. compute: the type that the layers
    compute in where the weights become fp32 masters; gradients are summed in fp32 either way. A layer at a time is
    widened and moved: weights that are mapped from a file take no memory before, and a shard's after. Raises UserError
    for a model that does not tell which of its parts are its layers.
    """
    root = causal_lm(model)
    policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in _layers(root):
        _widen(layer, compute)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # Embeddings, last norm and head together: they may be tied, and are needed to the end of a pass.
    _widen(root, compute)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Gradients add up. Gloo has no operation that scales while it sums, so the sum is asked for as such.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    setattr(root, _PASS, types.MethodType(lambda _, function: function(), root))
    register_fsdp_forward_method(root, _PASS)


def _layers(root: nn.Module) -> list[nn.Module]:
    names = set(getattr(root, "_no_split_modules", None) or ())
    layers = [part for part in root.modules() if type(part).__name__ in names]
    if not layers:
        raise UserError(
            f"{type(root).__name__} does not say which of its parts are its layers (_no_split_modules), so it cannot "
            "be spread over ranks; set distributed.ranks = 1"
        )
    return layers


def together(model: nn.Module, function: Callable[[], T]) -> T:
    """Return `function()`, which uses the model's backbone and head, as one forward pass of the whole model.

    FSDP gathers the weights that backbone and head share for a forward pass of the model alone. What has a gradient
    must be a tensor, or stand in a tuple or list. Within a pass of the model it is that pass.
    """
    root = causal_lm(model)
    if not isinstance(root, FSDPModule) or getattr(root, _IN_PASS, False):
        return function()
    setattr(root, _IN_PASS, True)
    try:
        result: T = getattr(root, _PASS)(function)
    finally:
        setattr(root, _IN_PASS, False)
    if not torch.is_grad_enabled():
        root.reshard()  # After a pass that no backward pass follows, the root's own weights would stay whole.
    return result


def _widen(module: nn.Module, compute: torch.dtype | None) -> None:
    """Make what of a module is not spread yet fp32 where its layers compute in another type."""
    if compute is None:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor) and tensor.is_floating_point():
            tensor.data = tensor.data.float()


def own_rows(weight: Tensor) -> slice:
    """Return which rows (the first dimension) of a weight this rank holds: all of one that is not spread."""
    if not isinstance(weight, DTensor):
        return slice(None)
    first, last = 0, weight.shape[0]
    for dim, placement in enumerate(weight.placements):
        if placement.is_shard():
            # As torch.chunk cuts: the last ranks may have fewer rows, or none.
            length = -(-(last - first) // weight.device_mesh.size(dim))
            first = min(last, first + length * weight.device_mesh.get_local_rank(dim))
            last = min(last, first + length)
    return slice(first, last)


def as_shard_of(weight: Tensor, rows: Tensor) -> Tensor:
    """Return a value of which this rank has its `own_rows`, spread as `weight` is."""
    if not isinstance(weight, DTensor):
        return rows.to(weight.device)
    return DTensor.from_local(
        rows.to(weight.device).contiguous(),
        weight.device_mesh,
        weight.placements,
        run_check=False,
        shape=weight.shape,
        stride=weight.stride(),
    )
