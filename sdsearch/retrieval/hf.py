"""A transformers sentence encoder of the E5 kind (Wang et al., 2022; the paper's retriever is E5-base-v2).

Shape suffixes: `B` texts of a batch, `N` texts, `T` tokens, `D` width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from schemas.base import hash_json
from schemas.errors import UserError, library_errors
from sdsearch.model.pretrained import open_model, open_tokenizer
from sdsearch.retrieval.ports import TextKind
from sdsearch.retrieval.vectors import encode_texts, refuse_zero_vectors

_TRIAL_TOKENS = 512


class HFSettings(NamedTuple):
    """How texts become vectors; the prefixes are E5's."""

    query_prefix: str = "query: "
    passage_prefix: str = "passage: "
    max_length: int = 256
    batch_size: int = 64


class HFEncoder:
    """Texts to unit vectors: prefix, encoder, mean over the text's tokens, unit length."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: HFSettings | None = None
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = settings or HFSettings()

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        settings: HFSettings | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        trust_remote_code: bool = False,
    ) -> HFEncoder:
        """Load a folder or hub name and encode a text with it, as long as it may be.

        Raises UserError when there is no model, no tokenizer, or untrusted code, and for a model that cannot encode.
        """
        torch_dtype = getattr(torch, dtype, None)
        if not isinstance(torch_dtype, torch.dtype):
            raise UserError(f"encoder '{path}': dtype '{dtype}' is unknown; choose float32, bfloat16 or float16")
        tokenizer = open_tokenizer(path, "retrieval.encoder", trust_remote_code=trust_remote_code)
        options: dict[str, Any] = {"dtype": torch_dtype, "output_loading_info": True}
        model, loaded = open_model(AutoModel, path, "retrieval.encoder", trust_remote_code=trust_remote_code, **options)
        _set_missing(model, loaded["missing_keys"], path)
        encoder = cls(model, tokenizer, settings)
        _check(encoder, path)
        with library_errors(f"retrieval.encoder.device '{device}' cannot be used on this machine", "choose 'cpu'"):
            model.to(device)
        encode_texts(encoder, ["word " * min(encoder.settings.max_length, _TRIAL_TOKENS)], "query")
        return encoder

    @property
    def num_dimensions(self) -> int:
        """D, the width of the model's states."""
        return int(self.model.config.hidden_size)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], kind: TextKind) -> NDArray[np.float32]:
        """Return (N, D) unit vectors in the order of the texts, which are cut to `max_length` tokens.

        Batches hold texts of like length, so that little is padded.
        """
        vectors_ND = np.empty((len(texts), self.num_dimensions), dtype=np.float32)
        if not texts:
            return vectors_ND
        prefix = self.settings.query_prefix if kind == "query" else self.settings.passage_prefix
        token_ids = self.tokenizer(
            [prefix + text for text in texts], truncation=True, max_length=self.settings.max_length
        )["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: len(token_ids[row]))
        for start in range(0, len(order), self.settings.batch_size):
            rows = order[start : start + self.settings.batch_size]
            vectors_ND[rows] = self._encode_batch([token_ids[row] for row in rows]).cpu().numpy()
        refuse_zero_vectors(vectors_ND, texts, kind)
        return vectors_ND

    def _encode_batch(self, token_ids: list[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": token_ids}, return_tensors="pt").to(self.model.device)
        states_BTD = self.model(**batch).last_hidden_state.float()
        return mean_pool(states_BTD, batch["attention_mask"])

    def fingerprint(self) -> str:
        """Return the sha256 (hex) of kind, settings, weights and tokenizer; batch size and device do not count."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        settings = self.settings._asdict()
        del settings["batch_size"]
        weights = hashlib.sha256()
        for name, tensor_X in sorted(self.model.state_dict().items()):
            weights.update(f"{name}{tensor_X.dtype}{tuple(tensor_X.shape)}".encode())
            weights.update(tensor_X.cpu().reshape(-1).view(torch.uint8).numpy().data)
        vocabulary = {
            "tokens": self.tokenizer.get_vocab(),
            "class": type(self.tokenizer).__name__,
        }
        return hash_json({"kind": "hf", **settings, "weights": weights.hexdigest(), "tokenizer": hash_json(vocabulary)})


def _set_missing(model: PreTrainedModel, missing: Collection[str], path: str) -> None:
    """Refuse weights that the folder lacks, which are drawn anew at each start; a pooler, not used, becomes zero."""
    lacking = sorted(name for name in missing if not name.startswith("pooler."))
    if lacking:
        raise UserError(
            f"retrieval.encoder.path '{path}' lacks {len(lacking)} of the weights of {type(model).__name__}, such as "
            f"{lacking[0]}; name a folder that save_pretrained wrote"
        )
    for name in missing:
        torch.nn.init.zeros_(model.get_parameter(name))


def _check(encoder: HFEncoder, path: str) -> None:
    """Raise UserError for what could only fail later: on the first batch, on a rare token, on a long text."""
    config, tokenizer, positions = encoder.model.config, encoder.tokenizer, _num_positions(encoder.model)
    rows = encoder.model.get_input_embeddings().weight.shape[0]
    num_tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)
    where = f"retrieval.encoder.path '{path}'"
    if config.is_encoder_decoder:
        raise UserError(f"{where}: {type(encoder.model).__name__} has a decoder; name a model that is an encoder alone")
    if tokenizer.pad_token is None:
        raise UserError(f"{where}: its tokenizer has no pad token; set pad_token in its tokenizer_config.json")
    if num_tokens > rows:
        raise UserError(
            f"{where}: its tokenizer knows {num_tokens} tokens, its model has vectors for {rows}; name a folder whose "
            "tokenizer and model belong together"
        )
    if positions is not None and encoder.settings.max_length > positions:
        raise UserError(
            f"retrieval.encoder.max_length is {encoder.settings.max_length}, the model of '{path}' reads at most "
            f"{positions} tokens; set it to that or less"
        )


def _num_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model can number, None where it does not say."""
    limit = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    # RoBERTa's kind numbers its tokens from behind the padding's place.
    return limit if limit is None or padding is None else limit - padding - 1


def mean_pool(states_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return (B, D) unit vectors: the mean of each text's states where the mask is 1, at length 1."""
    mask_BT1 = mask_BT.unsqueeze(-1).to(states_BTD.dtype)
    summed_BD = (states_BTD * mask_BT1).sum(dim=1)
    return torch.nn.functional.normalize(summed_BD, dim=-1)  # the mean's divisor cancels in the unit length
