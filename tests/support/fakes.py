"""Fakes for unit tests: a sampler that says what it is told, a retriever that knows a few passages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from schemas.records.passage import Passage, SearchHit
from sdsearch.sampling.ports import Respond, SampledTurn, TurnRequest


class ScriptedSampler:
    """Plays fixed token ids for each conversation and turn, with log-probability -1 for every token."""

    def __init__(self, script: Callable[[str, int], tuple[Sequence[int], str]]) -> None:
        self._script = script
        self.requests: list[TurnRequest] = []

    def converse(self, openings: Sequence[TurnRequest], respond: Respond) -> None:
        turn = 0
        requests = list(openings)
        while requests:
            self.requests.extend(requests)
            sampled = []
            for request in requests:
                ids, stop_reason = self._script(request.key, turn)
                sampled.append(SampledTurn(request.key, tuple(ids), (-1.0,) * len(ids), stop_reason))
            requests = list(respond(sampled))
            turn += 1


class FixedRetriever:
    """Returns the same passages for every query but 'nothing', and records what it was asked."""

    def __init__(self, texts: Sequence[str] = ("The capital of Andorra is Andorra la Vella.",)) -> None:
        self._hits = tuple(
            SearchHit(passage=Passage(id=str(i), title="Andorra", text=text), score=1.0) for i, text in enumerate(texts)
        )
        self.batches: list[tuple[str, ...]] = []

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        self.batches.append(tuple(queries))
        return [() if query == "nothing" else self._hits[:top_k] for query in queries]
