"""A model whose logits are a function of all tokens before them, and the plain way to sample from it.

The function is looked up in no cache and in no batch, so a sampler that forwards a token too many or too few, or a
token of another conversation, draws other tokens than the plain way does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from sdsearch.model.attention import TREE_ATTENTIONS
from sdsearch.sampling.ports import Respond, SampledTurn, TurnRequest
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt

# Closing tags are one token, or several; `>` alone completes one, and so does a token that goes on after it.
PIECES = (
    "<pad>",
    "<|end|>",
    "<|stop|>",
    "<search>",
    "</search>",
    "</sea",
    "rch>",
    "</answer>",
    "</",
    "answer",
    ">",
    "a",
)
END_IDS = (1, 2)
NO_TEXT = len(PIECES)  # The model has an embedding that the tokenizer has no text for.
_NEVER = -60.0


def make_pieces_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose text is its tokens put together."""
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="a"))
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<|end|>")


@dataclass(frozen=True)
class Script:
    """What follows a conversation: `likely` tokens, with logits that are drawn from everything said so far."""

    salt: int
    likely: tuple[int, ...]
    vocabulary: int

    def logits(self, history: Sequence[int]) -> list[float]:
        """Return the logits (V) after these tokens."""
        draw = random.Random(f"{self.salt} {list(history)}")
        logits = [_NEVER] * self.vocabulary
        for token in self.likely:
            logits[token] = draw.gauss(0.0, 1.5)
        return logits

    @cached_property
    def model(self) -> ScriptedModel:
        """The script as a transformers model."""
        return ScriptedModel(self)


class _ScriptedDecoder(nn.Module):
    """Gives logits for hidden states: it reads each row's whole history from the cache that it was handed."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script
        self.config = PreTrainedConfig(attn_implementation=TREE_ATTENTIONS["split"])

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_key_values: Cache, **kwargs: object
    ) -> BaseModelOutputWithPast:
        new_N1T1 = input_ids[:, None, :, None].float()
        cached_N1S1, _ = past_key_values.update(new_N1T1, new_N1T1, 0)
        rows = cached_N1S1[:, 0, :, 0].long().tolist()
        hidden = [
            [self._script.logits(row[: position + 1]) for position in positions]
            for row, positions in zip(rows, position_ids.tolist(), strict=True)
        ]
        return BaseModelOutputWithPast(last_hidden_state=torch.tensor(hidden), past_key_values=past_key_values)


class ScriptedModel(PreTrainedModel):
    """A script with the face of a causal language model; its head changes nothing."""

    config_class = PreTrainedConfig

    def __init__(self, script: Script) -> None:
        super().__init__(PreTrainedConfig(vocab_size=script.vocabulary))
        self.decoder = _ScriptedDecoder(script)
        self.lm_head = nn.Linear(script.vocabulary, script.vocabulary, bias=False)
        nn.init.eye_(self.lm_head.weight)
        self.generation_config = GenerationConfig(eos_token_id=list(END_IDS))

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, **arguments: object) -> CausalLMOutputWithPast:
        keep = arguments.pop("logits_to_keep", 0)
        hidden_NTD = self.decoder(**arguments).last_hidden_state
        kept = slice(-keep, None) if isinstance(keep, int) else keep
        return CausalLMOutputWithPast(logits=self.lm_head(hidden_NTD[:, kept]))


def draw_turn(
    script: Script, tokenizer: PreTrainedTokenizerFast, history: Sequence[int], request: TurnRequest
) -> SampledTurn:
    """Sample one turn after `history`, token by token, as the port says that it is sampled and ends."""
    uniforms = torch.rand(
        request.max_new_tokens, generator=torch.Generator().manual_seed(request.seed), dtype=torch.float64
    )
    ids: list[int] = []
    logprobs: list[float] = []
    reason = None
    while reason is None:
        logits = np.array(script.logits([*history, *ids]))
        scaled = logits / (request.temperature or 1.0)
        probabilities = np.exp(scaled - scaled.max())
        probabilities /= probabilities.sum()
        drawn = int(np.searchsorted(probabilities.cumsum(), float(uniforms[len(ids)]), side="right"))
        ids.append(drawn if request.temperature else int(logits.argmax()))
        logprobs.append(float(np.log(probabilities[ids[-1]])))
        reason = _end_of(ids, tokenizer, request.max_new_tokens)
    return SampledTurn(request.key, tuple(ids), tuple(logprobs), reason)


def _end_of(ids: list[int], tokenizer: PreTrainedTokenizerFast, limit: int) -> str | None:
    text = "".join(tokenizer.convert_ids_to_tokens(token) or "" for token in ids)
    if ids[-1] in END_IDS:
        return "end_of_turn"
    if "</search>" in text:
        return "search_closed"
    if "</answer>" in text:
        return "answer_closed"
    return "length" if len(ids) == limit else None


class OneByOne:
    """The plain `Sampler`: one conversation after another, nothing kept but its tokens."""

    def __init__(self, script: Script, tokenizer: PreTrainedTokenizerFast) -> None:
        self._script = script
        self._tokenizer = tokenizer

    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        """Generate until no conversation goes on (see the port)."""
        for opening in openings:
            requests: Sequence[TurnRequest] = [opening]
            history: list[int] = []
            while requests:
                (request,) = requests
                history += request.token_ids
                turn = draw_turn(self._script, self._tokenizer, history, request)
                history += turn.token_ids
                requests = respond([turn])


class ScriptedEngine:
    """An engine over a script; it looks for the end of a turn too late by up to `overrun` tokens."""

    def __init__(self, script: Script, tokenizer: PreTrainedTokenizerFast, overrun: int) -> None:
        self._script = script
        self._tokenizer = tokenizer
        self._overrun = overrun

    async def generate(self, prompt: Prompt) -> EngineTurn:
        """Generate one turn (see TurnGenerator)."""
        turn = draw_turn(self._script, self._tokenizer, prompt.token_ids, prompt.request)
        room = min(self._overrun, prompt.request.max_new_tokens - len(turn.token_ids))
        ids, logprobs = (*turn.token_ids, *[len(PIECES) - 1] * room), (*turn.logprobs, *[-1.0] * room)
        return EngineTurn(ids, logprobs, 0, turn.stop_reason)
