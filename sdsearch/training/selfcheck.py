"""Proof that sampler and update compute what transformers' own model does, before anything is trained.

Short conversations are read three ways: by the plain model, in rows of trees as the update reads them, and by the
sampler that wrote them. Families differ in windows, caps, scales and sinks, and in what their layers pass on; whatever
of that is lost on the way shows in these log-probabilities.
Shapes: `N` tokens after the contexts of all conversations, `V` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.errors import UserError, library_errors
from sdsearch.model.batching import TokenBatch, TokenSequence
from sdsearch.model.dropout import update_mode
from sdsearch.model.policy import causal_lm, head, read_logprobs
from sdsearch.sampling.ports import Sampler
from sdsearch.training.trial import Conversation, num_trial_tokens, sample_conversations, write_conversations

_EAGER_TOKENS: Final = 1024
_ROUNDING: Final = {torch.float64: 1e-6, torch.float32: 1e-3}
# Below float32 a token moves by tenths (a mixture's by more, where another expert is chosen): their mean counts.
_MEAN_ROUNDING: Final = 0.1
_REMEDY: Final = "nothing was trained; use a model of a family that docs/explanation/models.md lists as trained"


@dataclass(frozen=True)
class Difference:
    """How far a path's log-probabilities are from the plain model's, nats."""

    path: Literal["update", "sampler"]
    largest: float
    mean: float

    def exceeds(self, tolerance: float, dtype: torch.dtype) -> bool:
        """Whether it is more than a tolerance (0: than rounding): the largest in float32, the mean below; NaN is."""
        if dtype in _ROUNDING:
            return not self.largest <= (tolerance or _ROUNDING[dtype])
        return not self.mean <= (tolerance or _MEAN_ROUNDING)


def check_model(
    model: nn.Module,
    sampler: Sampler | None,
    token_ids: Sequence[int],
    *,
    longest: int,
    tolerance: float = 0.0,
    dropout: bool = False,
) -> list[Difference]:
    """Compare update and sampler with the plain model; UserError where one differs by more than rounding.

    Texts are made of `token_ids`; they are longer than the model's windows where `longest`, which a conversation of
    the run may have, lets them be. Without a sampler the update alone is compared. With `dropout` the update must also
    be able to compute the model with its own.
    """
    whole = causal_lm(model)
    differences = compare(model, sampler, token_ids, longest)
    for difference in differences:
        if difference.exceeds(tolerance, whole.dtype):
            raise UserError(
                f"{type(whole).__name__} is computed wrongly by the {difference.path}: its log-probabilities differ "
                f"from those of the plain model by up to {difference.largest:.2g} nats, {difference.mean:.2g} on "
                f"average; {_REMEDY}, or set model.check_tolerance if this is only rounding"
            )
    if dropout:
        with library_errors(
            f"{type(whole).__name__} cannot be computed with its dropout", "set update.dropout = false"
        ):
            _updated(model, write_conversations(token_ids, num_trial_tokens(whole.config, longest)), dropout=True)
    return differences


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> list[int]:
    """Return ids of tokens that texts are made of: in the vocabulary, and no markup."""
    rows = causal_lm(model).get_input_embeddings().weight.shape[0]
    added = tokenizer.added_tokens_decoder
    return sorted(i for i in set(tokenizer.get_vocab().values()) if i < rows and i not in added)


def compare(model: nn.Module, sampler: Sampler | None, token_ids: Sequence[int], longest: int) -> list[Difference]:
    """Return how far update and sampler are from the plain model; UserError where something cannot be computed."""
    whole = causal_lm(model)
    name = type(whole).__name__
    num_tokens = num_trial_tokens(whole.config, longest)
    if sampler is None:
        conversations = write_conversations(token_ids, num_tokens)
    else:
        with library_errors(f"{name} cannot be computed by the sampler", _REMEDY):
            conversations = sample_conversations(sampler, token_ids, num_tokens)
    with library_errors(f"{name} cannot be computed by transformers", _REMEDY):
        plain = [_plain(whole, conversation) for conversation in conversations]
    if not torch.allclose(plain[0][0], plain[1][0], rtol=0.01, atol=0.1):
        raise UserError(
            f"{name} is no causal language model: what it predicts after a text changes with the tokens that follow; "
            "point model.path at a decoder"
        )
    with library_errors(f"{name} cannot be computed by the update", _REMEDY):
        updated_NV = _updated(model, conversations)
    targets_N = torch.tensor([token for c in conversations for token in c.continued], device=whole.device)
    plain_N, updated_N = (read.gather(1, targets_N[:, None])[:, 0] for read in (torch.cat(plain), updated_NV))
    differences = [_difference("update", plain_N - updated_N)]
    if sampler is not None:
        given = enumerate(value for c in conversations for value in c.logprobs)
        sampled = [(position, value) for position, value in given if value is not None]
        plain_at = plain_N[[position for position, _ in sampled]].cpu()
        differences.append(_difference("sampler", plain_at - torch.tensor([value for _, value in sampled])))
    return differences


def _difference(path: Literal["update", "sampler"], difference_N: Tensor) -> Difference:
    return Difference(path, float(difference_N.abs().max()), float(difference_N.abs().mean()))


@torch.no_grad()
def _plain(model: PreTrainedModel, conversation: Conversation) -> Tensor:
    """Return the plain model's log-probabilities (T, V) of every token after the context."""
    ids = (*conversation.context, *conversation.continued)
    num_read = len(conversation.continued) + 1
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": num_read} if keeps else {}
    with _evaluating(model), _plain_attention(model, _reference_attention(model, len(ids))):
        logits_TV: Tensor = model(input_ids=torch.tensor([ids], device=model.device), **options).logits[0]
    return logits_TV[-num_read:-1].float().log_softmax(-1)


def _reference_attention(model: PreTrainedModel, num_tokens: int) -> str:
    """Return the attention that keeps all of a family's own rules; for long texts one that needs less memory."""
    capped = any("softcap" in name and value for name, value in vars(model.config.get_text_config()).items())
    return "eager" if num_tokens <= _EAGER_TOKENS or capped or not model._supports_sdpa else "sdpa"


@contextmanager
def _plain_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model attend as transformers itself would, its masks included."""
    parts = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    kept = [(part.config, part.config._attn_implementation) for part in parts]
    try:
        for config, _ in kept:
            config._attn_implementation = name
        yield
    finally:
        for config, former in kept:
            config._attn_implementation = former


@torch.no_grad()
def _updated(model: nn.Module, conversations: Sequence[Conversation], dropout: bool = False) -> Tensor:
    """Return the log-probabilities (N, V) that the update reads, all conversations in one row of trees."""
    sequences = [TokenSequence(c.context, c.continued, tuple(range(len(c.continued)))) for c in conversations]
    batch = TokenBatch.of(sequences, causal_lm(model).device)
    with update_mode(model, dropout):
        return read_logprobs(head(model), batch.hidden_at_reads(model), 1.0)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
