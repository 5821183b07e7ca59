"""Embedding a corpus shard by shard: restartable at a shard, by as many processes as one likes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flows.console.errors import UserError
from flows.retrieval.source import IndexSource
from sdsearch.retrieval.dense import encode_blocks
from storage.retrieval.embeddings import Embeddings, EmbeddingsUnusableError, begin_embeddings
from storage.retrieval.encoders import EncoderState

logger = logging.getLogger(__name__)
# Small enough for progress to be seen with a large encoder on a CPU, large enough for batches of like length.
_BLOCK_PASSAGES = 1024


class EmbedProgress(NamedTuple):
    """How far this process is: passages that it has encoded, and may have to."""

    num_done: int
    num_wanted: int
    shard: int


class Embedded(NamedTuple):
    """What a process did."""

    embeddings: Embeddings
    made: list[int]
    num_passages: int
    duration_s: float


Report = Callable[[EmbedProgress], None]


def embed(
    source: IndexSource,
    num_shards: int | None = None,
    only: Collection[int] | None = None,
    report: Report | None = None,
) -> Embedded:
    """Make the shards of a corpus that are missing and that no other process is making; `only` these, if given."""
    embeddings = begin(source, num_shards)
    check_shards(only, embeddings)
    encoder = source.open_encoder(embeddings.encoder)
    work = _Work(source, embeddings, encoder, only, report or (lambda progress: None))
    started = time.perf_counter()
    work.run()
    return Embedded(embeddings, work.made, work.num_done, time.perf_counter() - started)


def embed_all(source: IndexSource) -> Embeddings:
    """Make all shards; EmbeddingsUnusableError when another process still works on one."""
    embeddings = embed(source).embeddings
    missing = embeddings.missing()
    if missing:
        raise EmbeddingsUnusableError(
            f"{embeddings.folder}: other processes are making shards {', '.join(map(str, missing[:10]))}; wait for "
            "them, then try again"
        )
    return embeddings


def begin(source: IndexSource, num_shards: int | None) -> Embeddings:
    """Return a corpus's shards, begun where there are none yet, and cut into `num_shards` then."""

    def fit() -> tuple[EncoderState, int]:
        encoder, state = source.fit_encoder()
        return state, encoder.num_dimensions

    num_passages = len(source.corpus.passages)
    return begin_embeddings(source.workspace, source.embeddings_identity, num_passages, num_shards, fit)


def check_shards(only: Collection[int] | None, embeddings: Embeddings) -> None:
    """Raise UserError for shards that there are not."""
    last = embeddings.manifest.num_shards - 1
    if only is not None and (not only or min(only) < 0 or max(only) > last):
        raise UserError(f"--only names shards that there are not; expected FIRST:LAST within 0:{last}")


class _Work:
    """What one process makes of the shards."""

    def __init__(
        self, source: IndexSource, embeddings: Embeddings, encoder: Any, only: Collection[int] | None, report: Report
    ) -> None:
        self.made: list[int] = []
        self.num_done = 0
        self._passages = source.corpus.passages
        self._embeddings, self._encoder, self._report = embeddings, encoder, report
        self._only = only if only is not None else range(embeddings.manifest.num_shards)

    def run(self) -> None:
        for shard in self._missing():
            with self._embeddings.claimed(shard) as is_ours:
                # Another process may have made it since the list was read.
                if is_ours and shard in self._missing():
                    self._embeddings.write_shard(shard, self._vectors(shard))
                    self.made.append(shard)

    def _missing(self) -> list[int]:
        return [shard for shard in self._embeddings.missing() if shard in self._only]

    def _vectors(self, shard: int) -> Iterator[NDArray[np.float32]]:
        rows = self._embeddings.rows_of(shard)
        left = sum(len(self._embeddings.rows_of(missing)) for missing in self._missing())
        wanted = self.num_done + left
        texts = self._passages.contents(rows.start, rows.stop)
        for block_ND in encode_blocks(self._encoder, texts, self._embeddings.num_dimensions, _BLOCK_PASSAGES):
            yield block_ND
            self.num_done += len(block_ND)
            self._report(EmbedProgress(self.num_done, wanted, shard))
