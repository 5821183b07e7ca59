"""A corpus embedded by several processes of this machine, each with a card of its own where there are several."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from flows.console.errors import UserError
from flows.jobs.orders import EmbedOrder
from flows.jobs.processes import Job, Places, carry_out_jobs
from flows.retrieval.embedding import Embedded, EmbedProgress, Report, begin, check_shards, embed
from flows.retrieval.source import IndexSource
from flows.run.cards import cards_of
from schemas.settings.retrieval import DenseRetrievalSettings, HFEncoderSettings
from storage.retrieval.embeddings import Embeddings
from storage.workspace import Workspace

_LOOK_EVERY_S: Final = 1.0


def embed_side_by_side(
    source: IndexSource, num_shards: int | None, only: Collection[int] | None, num_workers: int, report: Report
) -> Embedded:
    """Make the shards that are missing in `num_workers` processes, each of which takes what no other has.

    Raises UserError when a worker fails; the shards that are there are kept.
    """
    embeddings, started = begin(source, num_shards), time.perf_counter()
    check_shards(only, embeddings)
    wanted = [shard for shard in embeddings.missing() if only is None or shard in only]
    workspace = source.workspace
    order = EmbedOrder(
        retrieval_json=source.settings.model_dump_json(),
        num_shards=embeddings.manifest.num_shards,
        only=tuple(wanted),
        workspace=str(workspace.root),
    )
    names = [f"embed-worker-{place}" for place in range(1, min(num_workers, len(wanted)) + 1)]
    jobs = [Job(name, name, order, name, partial(workspace.open_log, name)) for name in names]
    encoder = source.settings.encoder
    places = Places.of(num_workers, cards_of(encoder.device if isinstance(encoder, HFEncoderSettings) else "cpu"))
    failures = carry_out_jobs(jobs, workspace, places, lambda line: None, _looking(embeddings, wanted, report))
    if failures:
        raise UserError(
            f"{len(failures)} of {len(jobs)} workers failed: "
            f"{'; '.join(dict.fromkeys(failure.reason for failure in failures))}; the shards that are made are kept, "
            "repeat the command to make the others"
        )
    missing = set(embeddings.missing())
    made = [shard for shard in wanted if shard not in missing]
    num_passages = sum(len(embeddings.rows_of(shard)) for shard in made)
    return Embedded(embeddings, made, num_passages, time.perf_counter() - started)


def embed_share(order: EmbedOrder, workspace: Workspace) -> None:
    """Make the ordered shards that are missing and that no other process makes; errors as of `embed`."""
    settings = DenseRetrievalSettings.model_validate_json(order.retrieval_json)
    embed(IndexSource(settings, workspace), order.num_shards, order.only)


def _looking(embeddings: Embeddings, wanted: Collection[int], report: Report) -> Callable[[], None]:
    """Return what reports the passages of the shards that are there, looked up once a second."""
    looked_at = 0.0

    def look() -> None:
        nonlocal looked_at
        if time.monotonic() - looked_at >= _LOOK_EVERY_S:
            looked_at = time.monotonic()
            missing = set(embeddings.missing())
            done = [shard for shard in wanted if shard not in missing]
            total = sum(len(embeddings.rows_of(shard)) for shard in wanted)
            report(EmbedProgress(sum(len(embeddings.rows_of(shard)) for shard in done), total, len(done)))

    return look
