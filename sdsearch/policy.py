"""The policy as a transformers model: loading, tuning, and the two halves that the losses use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from schemas.errors import UserError

Tuning = Literal["full", "lora"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model folder or hub name; ValueError when it has none or no pad token can be set."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer could be read from '{folder}': {str(error).splitlines()[0]}; "
            "point model.path at a folder that save_pretrained wrote for both model and tokenizer"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(folder: str | Path, dtype: Literal["float32", "bfloat16"]) -> PreTrainedModel:
    """Open a causal language model for training; ValueError when the folder holds none."""
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=_DTYPES[dtype], attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise UserError(
            f"no model could be read from '{folder}': {str(error).splitlines()[0]}; "
            "point model.path at a folder that save_pretrained wrote, or at a hub name that this machine can reach"
        ) from error
    return model.eval()


def with_lora(model: PreTrainedModel, rank: int, alpha: float, targets: str | list[str], seed: int) -> PeftModel:
    """Add LoRA adapters without dropout; their initial weights depend on `seed` alone."""
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def causal_lm(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model below any PEFT wrapper (its layers hold the adapters)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone(model: nn.Module) -> nn.Module:
    """Return the part that turns token ids into hidden states."""
    return causal_lm(model).get_decoder()


def head(model: nn.Module) -> nn.Module:
    """Return the part that turns hidden states into logits."""
    return causal_lm(model).get_output_embeddings()


def trainable_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that the update changes, by name, tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def reference_weights(model: nn.Module, frozen: nn.Module | None) -> Iterator[nn.Module]:
    """Give the reference policy: the adapters switched off, or the frozen copy in full fine-tuning."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield model
    else:
        assert frozen is not None, "full fine-tuning keeps a frozen copy as its reference"
        yield frozen
