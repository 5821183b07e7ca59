"""Sampling with transformers: one slot a conversation, KV kept across turns, finished rows leave the batch.

A conversation's history is never prefilled twice: siblings share the prefill of their prompt, and after a
search only the reply is. Shapes: `N` rows, `T` new tokens, `V` vocabulary, `W` uniform numbers, `D` width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from schemas.errors import UserError
from schemas.records.rollout import StopReason
from sdsearch.model.attention import attend_to_trees
from sdsearch.model.policy import backbone, head
from sdsearch.model.visibility import masks_from
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.sampling.ports import NoListener, Respond, RolloutListener, SampledTurn, TurnRequest
from sdsearch.sampling.slots import SlotCache
from sdsearch.sampling.stopping import TurnEnds


@dataclass
class _Row:
    """One conversation's running turn."""

    request: TurnRequest
    uniforms_W: Tensor
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: StopReason | None = None

    @property
    def sampled(self) -> SampledTurn:
        assert self.stop_reason is not None, "the turn has ended"
        return SampledTurn(self.request.key, tuple(self.token_ids), tuple(self.logprobs), self.stop_reason)


class TransformersSampler:
    """The `Sampler` that runs a transformers model in this process; `listener` is told of each token."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        protocol: ActionProtocol = TAG_PROTOCOL,
        listener: RolloutListener | None = None,
    ) -> None:
        self._model = model
        self._listener = listener or NoListener()
        self._logits = head(model)
        self._ends = TurnEnds.of(model, tokenizer, protocol.stops)

    @torch.inference_mode()
    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        """Generate until no conversation goes on (see the port)."""
        if not openings:
            return
        attend_to_trees(backbone(self._model))
        was_training = self._model.training
        self._model.eval()
        try:
            self._run(openings, respond)
        finally:
            self._model.train(was_training)

    def _run(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        # Rows stand in slot order, [generating | waiting for a reply]; `num_active` is the border.
        cache = SlotCache(len(openings), self._model.device)
        rows = [_start_row(request) for request in openings]
        logits_NV = self._prefill_openings(cache, rows)
        num_active = len(rows)
        self._append_tokens(rows, logits_NV)
        # A pass appends tokens once, and the next one begins with moving back the rows whose turn ended with them:
        # a turn may end with its first token, after an opening and after a reply.
        while rows:
            num_active = _move_ended_back(cache, rows, num_active)
            num_waiting = len(rows) - num_active
            if num_waiting and num_waiting >= num_active // 4:
                num_active = self._continue(cache, rows, num_active, respond)
            else:
                self._decode_step(cache, rows[:num_active])

    def _continue(self, cache: SlotCache, rows: list[_Row], num_active: int, respond: Respond) -> int:
        """Hand ended turns to `respond`, prefill the replies, drop the conversations that are over."""
        waiting = rows[num_active:]
        requests = {request.key: request for request in respond([row.sampled for row in waiting])}
        for slot in reversed(range(num_active, len(rows))):
            request = requests.get(rows[slot].request.key)
            if request is not None:
                # The turn's last token was sampled but not yet forwarded: it goes in with the reply.
                tokens = (rows[slot].token_ids[-1], *request.token_ids)
                rows[slot] = _start_row(request, tokens)
                continue
            cache.swap_slots(slot, len(rows) - 1)
            rows[slot], rows[-1] = rows[-1], rows[slot]
            rows.pop()
        fresh = rows[num_active:]
        if fresh:
            logits_NV = self._forward(cache, torch.arange(num_active, len(rows)), [r.request.token_ids for r in fresh])
            self._append_tokens(fresh, logits_NV)
        return len(rows)

    def _prefill_openings(self, cache: SlotCache, rows: list[_Row]) -> Tensor:
        """Forward each distinct prompt once and copy its slot to the siblings; return logits (N, V)."""
        first_slot: dict[tuple[int, ...], int] = {}
        for slot, row in enumerate(rows):
            first_slot.setdefault(row.request.token_ids, slot)
        slots = list(first_slot.values())
        logits = self._forward(cache, torch.tensor(slots), list(first_slot))
        position = {slot: i for i, slot in enumerate(slots)}
        for slot, row in enumerate(rows):
            if slot not in position:
                cache.copy_slot(first_slot[row.request.token_ids], slot)
        return logits[[position[first_slot[row.request.token_ids]] for row in rows]]

    def _forward(self, cache: SlotCache, slots_N: Tensor | int, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append ragged tokens to the slots; return the logits (N, V) after each row's last token, fp32."""
        device = self._model.device
        lengths_N = torch.tensor([len(ids) for ids in tokens], device=device)
        width = int(lengths_N.max())
        input_ids_NT = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in tokens], device=device)
        # Right padding writes beyond a row's end; the row's next tokens overwrite it before anything sees it.
        positions_NT = cache.address(slots_N, width)
        with masks_from(partial(cache.mask, self._model.dtype)):
            output = backbone(self._model)(
                input_ids=input_ids_NT, position_ids=positions_NT, past_key_values=cache, use_cache=True
            )
        cache.extend(lengths_N)
        last_ND = output.last_hidden_state[torch.arange(len(tokens), device=device), lengths_N - 1]
        return self._logits(last_ND).float()

    def _decode_step(self, cache: SlotCache, rows: list[_Row]) -> None:
        logits_NV = self._forward(cache, len(rows), [row.token_ids[-1:] for row in rows])
        self._append_tokens(rows, logits_NV)

    def _append_tokens(self, rows: Sequence[_Row], logits_NV: Tensor) -> None:
        assert all(row.stop_reason is None for row in rows), "the turn goes on"
        temperature_N = torch.tensor([row.request.temperature for row in rows], dtype=torch.float32)
        uniform_N = torch.stack([row.uniforms_W[len(row.token_ids)] for row in rows])
        token_N, logprob_N = sample_tokens(logits_NV.cpu(), temperature_N, uniform_N)
        for row, token, logprob in zip(rows, token_N.tolist(), logprob_N.tolist(), strict=True):
            row.token_ids.append(token)
            row.logprobs.append(logprob)
            row.stop_reason = self._ends.reason(row.token_ids, row.request.max_new_tokens)
            self._listener.token_sampled(row.request.key, token)


def sample_tokens(logits_NV: Tensor, temperature_N: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token a row by inverting the cumulative distribution at `uniform_N`; greedy where temperature is 0.

    Returns token ids (N,) and their log-probabilities (N,), nats, at the row's temperature (at 1 for greedy).
    Raises UserError for logits that are not finite: from them any token would be drawn.
    """
    greedy_N = temperature_N == 0
    scale_N = torch.where(greedy_N, torch.ones_like(temperature_N), temperature_N)
    logprobs_NV = torch.log_softmax(logits_NV / scale_N[:, None], dim=-1)
    cumulative_NV = logprobs_NV.double().exp().cumsum(-1)
    target_N1 = (uniform_N.double() * cumulative_NV[:, -1])[:, None]
    drawn_N = torch.searchsorted(cumulative_NV, target_N1, right=True)[:, 0].clamp(max=logits_NV.shape[1] - 1)
    token_N = torch.where(greedy_N, logits_NV.argmax(-1), drawn_N)
    logprob_N = logprobs_NV.gather(1, token_N[:, None])[:, 0]
    if not bool(torch.isfinite(logprob_N).all()):
        raise UserError(
            "the policy gives no probabilities (its logits are not finite), so nothing can be sampled: its weights are "
            "damaged, or the last update threw them away; start a run with a lower update.learning_rate"
        )
    return token_N, logprob_N


def _start_row(request: TurnRequest, token_ids: tuple[int, ...] | None = None) -> _Row:
    if token_ids is not None:
        request = TurnRequest(request.key, token_ids, request.seed, request.max_new_tokens, request.temperature)
    generator = torch.Generator().manual_seed(request.seed)
    return _Row(request, torch.rand(request.max_new_tokens, generator=generator, dtype=torch.float64))


def _move_ended_back(cache: SlotCache, rows: list[_Row], num_active: int) -> int:
    """Swap rows whose turn has ended behind the generating ones; return the new border."""
    for slot in reversed(range(num_active)):
        if rows[slot].stop_reason is not None:
            num_active -= 1
            if slot != num_active:
                cache.swap_slots(slot, num_active)
                rows[slot], rows[num_active] = rows[num_active], rows[slot]
    return num_active
