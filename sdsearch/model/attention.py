"""Attention over trees of tokens: a shared context once, then its continuations side by side in one row.

Registered with transformers under the names of `TREE_ATTENTIONS`, so that models which look their attention up there
run unchanged. `split` makes one call of an attention a continuation, on any device: PyTorch's SDPA, or the model's own
where that caps its scores or has sinks, which SDPA lacks; `flex` is one FlexAttention kernel over the row, for a GPU.
Without a tree both are one call, which is what generation uses.
Shapes: `H` heads, `G` key-value heads, `T` tokens of the row, `D` width of a head, `P` context, `L` continuation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sdsearch.model.visibility import TreeLayout, TreeMask, masks_from, own_mask

AttentionKind = Literal["split", "flex"]
TREE_ATTENTIONS: Final[dict[AttentionKind, str]] = {"split": "sdsearch_tree", "flex": "sdsearch_tree_flex"}
# What attentions get beside the usual that changes their values and that SDPA does not know: soft-caps and sinks.
_BEYOND_SDPA: Final = ("softcap", "s_aux")


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return the attention output (B, T, H, D) of query (B, H, T, D) over key and value (B, G, T, D)."""
    own = _own_attention(module, kwargs)
    if not isinstance(attention_mask, TreeMask):
        attend, mask = (own, _additive(attention_mask, query, key)) if own else (sdpa_attention_forward, attention_mask)
        return attend(module, query, key, value, mask, scaling=scaling, dropout=dropout, **kwargs)
    # Split, not sliced: the backward pass of a slice fills a whole row with zeros, for each run and layer.
    sections = attention_mask.layout.sections()
    lengths = [length for length, _ in sections]
    runs = list(zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True))
    pieces = []
    for number, (length, context) in enumerate(sections):
        if not length:
            continue
        seen = runs[number] if context is None else _after(runs[context], runs[number])
        mask = attention_mask.between(seen[0].shape[2], seen[1].shape[2], query.device)
        if own:
            additive = _additive(mask, *seen[:2])
            output = own(module, *seen, additive, scaling=scaling, dropout=dropout, **kwargs)[0]
        else:
            output = scaled_dot_product_attention(
                seen[0],
                seen[1],
                seen[2],
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            ).transpose(1, 2)
        pieces.append(output[:, -length:])
    return torch.cat(pieces, dim=1), None


def _own_attention(module: nn.Module, kwargs: Mapping[str, Any]) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """Return the eager attention of the model's own code where SDPA would not give its values."""
    if all(kwargs.get(name) is None for name in _BEYOND_SDPA):
        return None
    own: Callable[..., tuple[Tensor, Tensor | None]] = sys.modules[type(module).__module__].eager_attention_forward
    return own


def _additive(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """Return a mask as what is added to the scores (…, T, S); None is causal, the last query seeing every key."""
    if mask is not None and mask.dtype != torch.bool:
        return mask
    if mask is None:
        num_own, num_seen = query.shape[2], key.shape[2]
        mask = torch.ones(num_own, num_seen, dtype=torch.bool, device=query.device).tril(num_seen - num_own)
    zeros = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    return zeros.masked_fill_(~mask, float("-inf"))


def _after(context: Sequence[Tensor], own: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return query, key and value of a branch that sees its context.

    A branch longer than its context takes the context's queries along, whose outputs nobody reads: plain causal
    attention over both costs less than a masked rectangle.
    """
    taken_along = own[0].shape[2] > context[0].shape[2]
    query = torch.cat([context[0], own[0]], dim=2) if taken_along else own[0]
    key, value = (torch.cat(pair, dim=2) for pair in zip(context[1:], own[1:], strict=True))
    return query, key, value


def flex_tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return what `tree_attention` does, by one FlexAttention kernel; ValueError for dropout, which that lacks.

    Layers with soft-caps or sinks are split: their own attention knows these.
    """
    if not isinstance(attention_mask, TreeMask) or _own_attention(module, kwargs):
        return tree_attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if dropout:
        raise ValueError(f"the model's attention dropout is {dropout}: use model.attention = 'split'")
    output = _flex_kernel(query.device.type)(
        query,
        key,
        value,
        block_mask=_block_mask(attention_mask, query.device),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


@cache
def _flex_kernel(device_type: str) -> Callable[..., Tensor]:
    """Return FlexAttention, compiled where there is a kernel to compile; elsewhere it is plain PyTorch."""
    plain: Callable[..., Tensor] = flex_attention
    return torch.compile(plain, dynamic=True) if device_type == "cuda" else plain


def _block_mask(mask: TreeMask, device: torch.device) -> BlockMask:
    """Return who sees whom in a row of trees; every layer of a kind shares it in a forward pass."""
    if device in mask.kept:
        kept: BlockMask = mask.kept[device]
        return kept
    sections = mask.layout.sections()
    lengths = torch.tensor([length for length, _ in sections])
    numbers = torch.arange(len(sections))
    contexts = torch.tensor([number if context is None else context for number, (_, context) in enumerate(sections)])
    section_T = numbers.repeat_interleave(lengths).to(device)
    context_T = contexts.repeat_interleave(lengths).to(device)
    position_T = mask.layout.position_ids()[0].to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        own = (section_T[key] == section_T[query]) | (section_T[key] == context_T[query])
        return own & mask.sees(batch, head, position_T[query], position_T[key])

    num_tokens = len(section_T)
    mask.kept[device] = create_block_mask(sees, None, None, num_tokens, num_tokens, device=device)
    return _block_mask(mask, device)


def attend_to_trees(backbone: PreTrainedModel) -> None:
    """Give a decoder the `split` attention if it has neither."""
    if backbone.config._attn_implementation not in TREE_ATTENTIONS.values():
        backbone.set_attn_implementation(TREE_ATTENTIONS["split"])


def run_trees(backbone: PreTrainedModel, input_ids_T: Tensor, layout: TreeLayout) -> Tensor:
    """Return the last hidden states (T, D) of a transformers decoder over a row of trees."""
    attend_to_trees(backbone)
    device = input_ids_T.device
    with masks_from(partial(TreeMask, layout)):
        output = backbone(
            input_ids=input_ids_T[None],
            position_ids=layout.position_ids().to(device),
            # Without one, transformers takes positions that restart for several texts packed into one row.
            attention_mask=torch.ones(1, len(input_ids_T), dtype=torch.bool, device=device),
            use_cache=False,
        )
    hidden_1TD: Tensor = output.last_hidden_state
    return hidden_1TD[0]


AttentionInterface.register(TREE_ATTENTIONS["split"], tree_attention)
AttentionInterface.register(TREE_ATTENTIONS["flex"], flex_tree_attention)
for _name in TREE_ATTENTIONS.values():
    AttentionMaskInterface.register(_name, own_mask)
