"""The plain way to sample rollouts with transformers: `generate`, called once a turn for all that go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sdsearch.sampling.ports import Respond, SampledTurn, TurnRequest
from sdsearch.sampling.stopping import TurnEnds


class GenerateSampler:
    """A `Sampler` that pads the whole history of each conversation on the left and generates a turn of all at once.

    Every history is computed again each turn, and all wait for the longest turn. It gives no log-probabilities, which
    would cost it more.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._ends = TurnEnds.of(model, tokenizer)

    @torch.inference_mode()
    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        """Generate until no conversation goes on (see the port)."""
        torch.manual_seed(openings[0].seed % 2**63)
        histories: dict[str, list[int]] = {request.key: [] for request in openings}
        requests = openings
        while requests:
            for request in requests:
                histories[request.key] += request.token_ids
            turns = self._generate([histories[request.key] for request in requests], requests)
            for turn in turns:
                histories[turn.key] += turn.token_ids
            requests = respond(turns)

    def _generate(self, histories: Sequence[Sequence[int]], requests: Sequence[TurnRequest]) -> list[SampledTurn]:
        longest = max(map(len, histories))
        padded = [[0] * (longest - len(history)) + list(history) for history in histories]
        seen = [[0] * (longest - len(history)) + [1] * len(history) for history in histories]
        output = self._model.generate(
            input_ids=torch.tensor(padded),
            attention_mask=torch.tensor(seen),
            generation_config=GenerationConfig(
                do_sample=True,
                temperature=requests[0].temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max(request.max_new_tokens for request in requests),
                stop_strings=list(self._ends.stops),
                pad_token_id=self._tokenizer.pad_token_id,
                eos_token_id=self._tokenizer.eos_token_id,
            ),
            tokenizer=self._tokenizer,
        )
        rows = zip(requests, output[:, longest:].tolist(), strict=True)
        return [self._turn(request, token_ids) for request, token_ids in rows]

    def _turn(self, request: TurnRequest, token_ids: list[int]) -> SampledTurn:
        end = self._ends.first_end(token_ids, request.max_new_tokens)
        count, reason = end or (len(token_ids), "length")
        return SampledTurn(request.key, tuple(token_ids[:count]), (None,) * count, reason)
