"""The policy as a transformers model: loading, tuning, and the two halves that the losses use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pytorch_utils import Conv1D

from schemas.errors import UserError, library_errors
from sdsearch.model.attention import TREE_ATTENTIONS, AttentionKind
from sdsearch.model.pretrained import open_config, open_model, open_tokenizer
from sdsearch.protocol.tokens import TAGS

Tuning = Literal["full", "lora"]
_LINEAR = (nn.Linear, Conv1D)
# What configurations call the number of positions; transformers maps others (n_positions) to the first.
CONTEXT_LIMITS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "model_max_length")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model folder or hub name, with a pad token; UserError when it has none."""
    tokenizer = open_tokenizer(str(folder), "model", trust_remote_code=trust_remote_code)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    folder: str | Path,
    dtype: Literal["float32", "bfloat16"],
    trust_remote_code: bool = False,
    attention: AttentionKind = "split",
) -> PreTrainedModel:
    """Open a causal language model for training; UserError when the folder holds none that may be loaded.

    A model whose folder lacks some of its weights is refused too: they would be drawn at random.
    """
    path = str(folder)
    config = open_config(path, "model", trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        raise UserError(
            f"the model of '{path}' has an encoder and a decoder ({config.model_type}); point model.path at a causal "
            "language model, which is a decoder alone"
        )
    options = {"dtype": _DTYPES[dtype], "attn_implementation": TREE_ATTENTIONS[attention], "output_loading_info": True}
    with _own_attention_told(path, attention):
        opened = open_model(AutoModelForCausalLM, path, "model", trust_remote_code=trust_remote_code, **options)
    model, loaded = opened
    if lacking := sorted(loaded["missing_keys"]):
        raise UserError(
            f"the model of '{path}' lacks {len(lacking)} of the weights of {type(model).__name__}, such as "
            f"{lacking[0]}; point model.path at the whole causal language model that save_pretrained wrote"
        )
    return model.eval()


@contextmanager
def _own_attention_told(path: str, attention: AttentionKind) -> Iterator[None]:
    """Say in words when a class knows only the attentions that it was written with."""
    try:
        yield
    except UserError as error:
        if TREE_ATTENTIONS[attention] not in str(error.__cause__):
            raise
        raise UserError(
            f"the model of '{path}' attends by code of its own, which cannot be given another; use a model of a family "
            "that docs/explanation/models.md lists as trained"
        ) from error


def check_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError when text may hold tokens for which the model has no embedding.

    Special tokens that neither the protocol nor the chat template writes never stand in a prompt (Gemma 3's tokenizer
    has one for images).
    """
    rows = causal_lm(model).get_input_embeddings().weight.shape[0]
    written = {f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")}
    written |= {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    template = str(tokenizer.chat_template or "")
    added = tokenizer.added_tokens_decoder.values()
    unwritten = {token.content for token in added if token.special and token.content not in template} - written
    beyond = [token for token, number in tokenizer.get_vocab().items() if number >= rows and token not in unwritten]
    if beyond:
        raise UserError(
            f"model.path: the tokenizer has {len(beyond)} tokens, such as {min(beyond)!r}, for which the model has no "
            f"embedding (it has {rows} rows); use the tokenizer that the model was trained with, or resize the model's "
            "embeddings and save both"
        )


def with_lora(model: PreTrainedModel, rank: int, alpha: float, targets: str | list[str], seed: int) -> PeftModel:
    """Add LoRA adapters without dropout; their initial weights depend on `seed` alone.

    Targets are names of layers, one name as text, a regular expression over whole names, or 'all-linear'. Raises
    UserError when they name no layers of the model, or the adapters cannot be made.
    """
    layers = sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, _LINEAR)})
    remedy = f"name some of {', '.join(layers)}, or 'all-linear'"
    is_name = isinstance(targets, str) and targets != "all-linear" and re.fullmatch(r"[\w.]+", targets)
    named = [targets] if is_name else targets
    with torch.random.fork_rng(devices=[]), library_errors(f"model.lora_targets {targets!r} of rank {rank}", remedy):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=named, lora_dropout=0.0, task_type="CAUSAL_LM")
        return get_peft_model(model, config)


def set_adapters(model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Give the adapters the weights that `save_pretrained` wrote; UserError for those of other adapters."""
    result = set_peft_model_state_dict(model, dict(tensors))
    foreign = [*result.unexpected_keys, *(name for name in result.missing_keys if "lora_" in name)]
    if foreign:
        raise UserError(
            f"the stored adapters are not those of these settings ({len(foreign)} tensors differ, the first is "
            f"{foreign[0]}); use the model.lora_* settings that they were made with"
        )


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model below any PEFT wrapper (its layers hold the adapters)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone(model: nn.Module) -> nn.Module:
    """Return the part that turns token ids into hidden states."""
    whole = causal_lm(model)
    decoder: nn.Module = whole.get_decoder()
    if decoder is not whole:
        return decoder
    # Some classes do not tell which of their parts it is.
    parts = [part for part in whole.children() if isinstance(part, PreTrainedModel)]
    return parts[0] if len(parts) == 1 else whole


def output_layer(model: nn.Module) -> nn.Linear:
    """Return the linear layer that the model's logits come from; its rows are the vocabulary."""
    layer: nn.Linear = causal_lm(model).get_output_embeddings()
    return layer


def head(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what turns hidden states (N, D) into logits (N, V).

    It is the model's own forward pass with a decoder that has run already, so that scales and soft-caps which the
    model puts on its logits are there.
    """
    whole, decoder = causal_lm(model), backbone(model)
    path = next((name for name, part in whole.named_modules() if part is decoder), "")
    if not path:
        raise UserError(f"{type(whole).__name__} has no decoder with a head over it, so it cannot be trained here")

    def logits(hidden_ND: Tensor) -> Tensor:
        ready = _with_part(whole, path.split("."), _Ready(decoder, hidden_ND[None]))
        logits_1NV: Tensor = ready(inputs_embeds=hidden_ND[None]).logits
        return logits_1NV[0]

    return logits


def read_logprobs(logits_fn: Callable[[Tensor], Tensor], hidden_ND: Tensor, temperature: float) -> Tensor:
    """Return log-probabilities (N, V) in fp32 (a float64 model's own type) at the rollout temperature."""
    logits_NV = logits_fn(hidden_ND)
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    # At 1 the division would only make a copy, as large as the logits.
    return torch.log_softmax(logits_NV if temperature == 1 else logits_NV / temperature, dim=-1)


class _HiddenStates(BaseModelOutputWithPast):  # type: ignore[misc] # transformers is not read by mypy
    """A decoder's output that holds hidden states alone: what families add (router logits, …) is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Ready(nn.Module):
    """Stands where a decoder does and returns hidden states that were computed before."""

    def __init__(self, decoder: nn.Module, hidden_1ND: Tensor) -> None:
        super().__init__()
        self.__dict__["decoder"] = decoder  # Not as a part: it is asked for its attributes alone.
        self._hidden_1ND = hidden_1ND

    def forward(self, *args: object, **kwargs: object) -> _HiddenStates:
        return _HiddenStates(last_hidden_state=self._hidden_1ND)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)


def _with_part(module: nn.Module, path: Sequence[str], part: nn.Module) -> nn.Module:
    """Return a module that shares everything with another one but the part at a path."""
    if not path:
        return part
    # Not copy.copy: FSDP's classes make a module anew. Their hooks gather weights, which are there by now.
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    if isinstance(module, FSDPModule):
        twin.__dict__.update(_forward_pre_hooks={}, _forward_hooks={})
    inner = _with_part(module.get_submodule(path[0]), path[1:], part)
    twin.__dict__["_modules"] = {**module._modules, path[0]: inner}
    return twin


def context_limit(model: nn.Module) -> int | None:
    """Return how many tokens the model can number, None where its configuration sets no limit."""
    config = causal_lm(model).config.get_text_config()
    return next((value for name in CONTEXT_LIMITS if isinstance(value := getattr(config, name, None), int)), None)


def set_gradient_checkpointing(model: nn.Module, on: bool) -> None:
    """Make the backward pass of a model in training mode compute each layer again, or keep what the layers made."""
    if on:
        causal_lm(model).gradient_checkpointing_enable({"use_reentrant": False})
    else:
        causal_lm(model).gradient_checkpointing_disable()


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that the update changes, by name, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def reference_weights(model: nn.Module, frozen: nn.Module | None) -> Iterator[nn.Module]:
    """Give the reference policy: the adapters switched off, or the frozen copy in full fine-tuning."""
    if isinstance(model, PeftModel):
        adapters = list(trainable_parameters(model).values())
        with model.disable_adapter():
            for adapter in adapters:  # PEFT has them want no gradient; FSDP asks once, and it may be now.
                adapter.requires_grad_(True)
            yield model
    else:
        assert frozen is not None, "full fine-tuning keeps a frozen copy as its reference"
        yield frozen
