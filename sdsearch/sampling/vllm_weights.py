"""Proof that an engine samples from the weights that the trainer holds.

After every change of weights the engine and the trainer read the same fixed text, longer than the model's windows, and
the same two freshly sampled turns, the second after a reply; unless their log-probabilities agree nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from schemas.base import Record
from sdsearch.model.batching import TokenBatch, TokenSequence
from sdsearch.model.policy import head, read_logprobs
from sdsearch.model.sharding import together
from sdsearch.protocol.tokens import encode
from sdsearch.sampling.ports import TurnRequest
from sdsearch.sampling.vllm_turns import EngineTurn, Prompt, SamplerError, TurnGenerator

_PROBE_TEXT = (
    "Question: Which river flows through the capital of the country where tea was first grown?\n"
    "<think> I need the country, then its capital. </think>\n<search> country where tea was first grown </search>\n"
    "<documents>\nDoc 1(Title: Tea) Tea was first grown in China; 2,737 years later, in 1610, it came to Amsterdam.\n"
    "</documents>\n<think> China. Its capital is Beijing. </think>\n"
)
_PROBE_NEW_TOKENS = 16
_PROBE_REPLY = 16
_PROBE_SEED = 20_260_518


@dataclass(frozen=True)
class PolicyWeights:
    """Where the weights of a policy version are."""

    version: int
    kind: Literal["base", "adapter", "full"]  # base: what the engine was started with
    folder: str


@dataclass(frozen=True)
class ProbeReading:
    """What one engine said of the probe."""

    engine: str  # Which one, for messages.
    text_logprobs: tuple[float | None, ...]  # Of each token of the text but the first, at temperature 1.
    turn: EngineTurn
    second: EngineTurn  # After the first and a reply: its past comes from the engine's cache.


class Passage(Record):
    """Tokens whose log-probabilities are asked for, and what stands before them."""

    context: tuple[int, ...] = Field(description="The tokens before them, one at least.")
    token_ids: tuple[int, ...] = Field(description="The tokens that are read.")
    temperature: float = Field(description="The temperature that their logits are divided by.")


def passage(context: tuple[int, ...], token_ids: tuple[int, ...], temperature: float) -> Passage:
    """Return the passage of these tokens after the context."""
    return Passage(context=context, token_ids=token_ids, temperature=temperature)


Reader = Callable[[Sequence[Passage]], list[Tensor]]
"""Returns the log-probabilities (T,) of each passage's tokens, nats, on the CPU."""


class WeightedEngine(TurnGenerator, Protocol):
    """An engine, or several, whose weights can be changed while no turn is being generated."""

    async def load(self, weights: PolicyWeights) -> None:
        """Make these weights the ones that every replica samples from."""
        ...

    async def read(self, prompt: Prompt) -> list[ProbeReading]:
        """Have EVERY replica that may be sampled from read the probe: one that is left out may be stale."""
        ...


async def read_replica(
    name: str,
    prompt: Prompt,
    generate: Callable[[Prompt], Awaitable[EngineTurn]],
    read_text: Callable[[], Awaitable[Sequence[float | None]]],
) -> ProbeReading:
    """Have one replica generate two turns after the prompt as any others are, then read it.

    The turns come first: what former weights have left in the prefix cache shows in them. read_text: gives the
    log-probability of each token of the prompt but the first, for which nothing cached is used.
    """
    turn = await generate(prompt)
    second = await generate(second_prompt(prompt, turn))
    return ProbeReading(name, tuple(await read_text()), turn, second)


@dataclass(frozen=True)
class ProbeResult:
    """How far sampler and trainer are apart, nats a token."""

    max_difference: float
    mean_difference: float


def probe_prompt(
    tokenizer: PreTrainedTokenizerBase, temperature: float, max_tokens: int, num_tokens: int = 0
) -> Prompt:
    """Return the fixed text as a prompt for two more turns.

    It is repeated up to `num_tokens`, which a model with windows needs, and cut to what the model can read.
    """
    text = encode(tokenizer, _PROBE_TEXT)
    repeated = text * max(1, -(-num_tokens // len(text)))
    token_ids = tuple(repeated)[: max(1, max_tokens - 2 * _PROBE_NEW_TOKENS - _PROBE_REPLY)]
    return Prompt(token_ids, TurnRequest("probe", token_ids, _PROBE_SEED, _PROBE_NEW_TOKENS, temperature))


def second_prompt(prompt: Prompt, turn: EngineTurn) -> Prompt:
    """Return the probe's prompt after its first turn and a reply."""
    token_ids = (*prompt.token_ids, *turn.token_ids, *prompt.token_ids[:_PROBE_REPLY])
    return Prompt(token_ids, replace(prompt.request, token_ids=token_ids, seed=_PROBE_SEED + 1))


class WeightProbe:
    """Compares engine and trainer after each change of weights."""

    def __init__(self, prompt: Prompt, tolerance: float) -> None:
        self.prompt = prompt
        self._tolerance = tolerance
        self._former: Tensor | None = None  # The text's log-probabilities under the version before.

    def check(self, readings: Sequence[ProbeReading], read: Reader, weights: PolicyWeights) -> ProbeResult:
        """Return the largest differences over all engines; SamplerError when one does not run these weights.

        read: what the trainer, which holds these weights, says of passages; asked once for all engines. Besides the
        tolerance, which must leave room for a low-precision engine's rounding, an engine is refused when it reads the
        text more like the former version than like this one.
        """
        turns = [turn for reading in readings for turn in self._of_turns(reading)]
        current, *own = read([passage(self.prompt.token_ids[:1], self.prompt.token_ids[1:], 1.0), *turns])
        results = [
            self._check_one(reading, current, (first, second), weights)
            for reading, first, second in zip(readings, own[::2], own[1::2], strict=True)
        ]
        self._former = current
        return ProbeResult(
            max(result.max_difference for result in results), max(result.mean_difference for result in results)
        )

    def _check_one(
        self, reading: ProbeReading, current: Tensor, turns: tuple[Tensor, Tensor], weights: PolicyWeights
    ) -> ProbeResult:
        text = _differences(reading.text_logprobs, current)
        told = (reading.turn.logprobs, reading.second.logprobs)
        differences = torch.cat([text, *(_differences(given, own) for given, own in zip(told, turns, strict=True))])
        result = ProbeResult(float(differences.max()), float(differences.mean()))
        stale = self._former is not None and float(
            _differences(reading.text_logprobs, self._former).mean()
        ) < 0.5 * float(text.mean())
        if not result.max_difference <= self._tolerance or stale:
            seems = "it still reads the text as the version before did" if stale else "it runs other weights, or rounds"
            raise SamplerError(
                f"{reading.engine} does not sample from policy version {weights.version} ({weights.folder}): on a "
                f"fixed text its log-probabilities differ from the trainer's by up to {result.max_difference:.2g} nats "
                f"(mean {result.mean_difference:.2g}; sampling.probe_tolerance is {self._tolerance:g}): {seems}. "
                "Nothing was sampled; if precision is the cause, use one dtype for both or raise the tolerance"
            )
        return result

    def _of_turns(self, reading: ProbeReading) -> tuple[Passage, Passage]:
        """Return what the trainer reads of an engine's two turns."""
        temperature = self.prompt.request.temperature
        second = second_prompt(self.prompt, reading.turn)
        return (
            passage(self.prompt.token_ids, reading.turn.token_ids, temperature),
            passage(second.token_ids, reading.second.token_ids, temperature),
        )


def reader_of(model: nn.Module) -> Reader:
    """Return the reader over a model; where it is spread over ranks, all of them read together."""
    return lambda passages: [
        read_by_trainer(model, asked.context, asked.token_ids, asked.temperature) for asked in passages
    ]


@torch.no_grad()
def read_by_trainer(model: nn.Module, context: Sequence[int], token_ids: Sequence[int], temperature: float) -> Tensor:
    """Return the trainer's log-probabilities (T,) of the tokens after the context, nats, on the CPU."""
    sequence = TokenSequence(tuple(context), tuple(token_ids), tuple(range(len(token_ids))))
    batch = TokenBatch.of([sequence], next(model.parameters()).device)
    was_training = model.training
    model.eval()
    try:
        logprobs_TV = together(model, lambda: read_logprobs(head(model), batch.hidden_at_reads(model), temperature))
    finally:
        model.train(was_training)
    return logprobs_TV.gather(1, batch.targets_N[:, None])[:, 0].float().cpu()


def _differences(logprobs: Sequence[float | None], own: Tensor) -> Tensor:
    """Return |engine - trainer| (T,); infinite where the engine gave none."""
    given = torch.tensor([float("inf") if logprob is None else logprob for logprob in logprobs])
    assert given.shape == own.shape, "the engine read the whole text"
    return (given - own).abs()
