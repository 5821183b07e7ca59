"""An evaluation's batches spread over processes: which batches go to whom, and what a process does with its own.

Batches are cut as in one process, and an answer depends on nothing outside its batch, so that the answers are the same
bits. A batch that is answered is a piece of the attempt, as one that the evaluation's own process answers: whoever
dies, the next attempt goes on after the pieces that are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from flows.console.errors import UserError
from flows.console.interrupts import resume_command
from flows.evaluation.stage import EVALUATE, Batch, Helpers, evaluation_batches, evaluation_inputs, no_helpers
from flows.jobs.orders import AnswerOrder
from flows.jobs.processes import Job, Places, carry_out_jobs
from flows.run.cards import cards_of
from flows.run.live import Runtime, open_runtime
from flows.run.progress import RolloutProgress, SilentReporter
from flows.run.stage_inputs import code_hash, input_hash, stage_sources
from schemas.records.evaluation import EvaluationAnswer
from schemas.records.ledger import StageKey, StageRecord
from schemas.records.reports import RetrievalReport
from schemas.settings.root import Settings
from schemas.settings.sampling import TransformersSamplerSettings
from storage.runs.partial import PartialResults
from storage.storage import Storage

_LOOK_EVERY_S: Final = 1.0


def helpers_of(num_workers: int) -> Helpers:
    """Return who answers an evaluation's batches beside its own process: nobody for one worker."""
    return no_helpers if num_workers == 1 else partial(_answer_side_by_side, num_workers)


def check_workers(settings: Settings, num_workers: int) -> None:
    """Raise UserError where several processes cannot sample beside each other."""
    if num_workers > 1 and not isinstance(settings.sampling, TransformersSamplerSettings):
        raise UserError(
            f"--workers {num_workers}: sampling.kind = '{settings.sampling.kind}' answers many questions at one time "
            "by itself; leave --workers out, and give the engine more cards or servers instead "
            "(docs/how-to/vllm.md)"
        )


def answer_share(order: AnswerOrder, settings: Settings, storage: Storage) -> None:
    """Answer the ordered batches that nobody has answered, and keep each as a piece of the attempt.

    Raises UserError when this process would answer with other code, weights, questions or index than the one that
    ordered it.
    """
    attempt = order.attempt
    sets = settings.evaluation.asked_sets(settings.data)
    with open_runtime(settings, attempt.run, storage, SilentReporter(), order.source) as live:
        key = StageKey(run=order.source or attempt.run, iteration=attempt.iteration, stage="update")
        upstream = evaluation_inputs(live, storage.ledger.done(key), sets)
        if attempt.input_hash != input_hash(settings, EVALUATE, upstream, code_hash(stage_sources(settings, EVALUATE))):
            raise UserError(
                f"evaluation {attempt.run}: a worker would answer with another program, policy, index or other "
                "questions than the evaluation was started with; start it again"
            )
        pieces = PartialResults(storage.artifacts, attempt)
        loop = live.rollout_loop(attempt.iteration)
        for batch in evaluation_batches(live, attempt.iteration, sets):
            if batch.name in order.batches and pieces.read(batch.name, EvaluationAnswer) is None:
                answers = batch.answer(loop)
                searches = live.take_reports(searching=True)["retrieval"]
                assert isinstance(searches, RetrievalReport)
                pieces.write(_searches(batch), RetrievalReport, [searches])
                pieces.write(batch.name, EvaluationAnswer, answers)


def shares(missing: Sequence[Batch], num_workers: int) -> list[list[Batch]]:
    """Deal the batches in turn, as many shares as there are workers and batches for them."""
    return [list(missing[place::num_workers]) for place in range(min(num_workers, len(missing)))]


def _answer_side_by_side(
    num_workers: int, live: Runtime, attempt: StageRecord, missing: Sequence[Batch], progress: RolloutProgress
) -> None:
    workspace, pieces = live.storage.workspace, PartialResults(live.storage.artifacts, attempt)
    dealt = shares(missing, num_workers)
    jobs = []
    for place, share in enumerate(dealt, 1):
        order = AnswerOrder(
            source=live.source,
            attempt=attempt,
            batches=tuple(batch.name for batch in share),
            workspace=str(workspace.root),
            settings_json=live.settings.model_dump_json(),
        )
        what, log = f"worker {place} of {len(dealt)}", partial(workspace.open_log, f"{attempt.run}-worker-{place}")
        jobs.append(Job(f"{attempt.run}-worker-{place}", what, order, f"{what}: {len(share)} batches", log))
    places = Places.of(max(len(dealt), 1), cards_of(live.settings.model.device))
    failures = carry_out_jobs(jobs, workspace, places, lambda line: None, _looking(pieces, missing, progress))
    if failures:
        raise UserError(
            f"evaluation {attempt.run}: {len(failures)} of {len(dealt)} workers failed: "
            f"{'; '.join(dict.fromkeys(failure.reason for failure in failures))}; what they answered is kept, continue "
            f"with: {resume_command(attempt.run, workspace.root, num_workers)}"
        )
    for batch in missing:
        for report in pieces.read(_searches(batch), RetrievalReport) or []:
            live.add_searches(report)


def _looking(pieces: PartialResults, missing: Sequence[Batch], progress: RolloutProgress) -> Callable[[], None]:
    """Return what tells the progress how many questions have been answered, looked up once a second."""
    looked_at = 0.0

    def look() -> None:
        nonlocal looked_at
        if time.monotonic() - looked_at >= _LOOK_EVERY_S:
            looked_at = time.monotonic()
            there = pieces.names()
            progress.others_kept(sum(len(batch.questions) for batch in missing if batch.name not in there))

    return look


def _searches(batch: Batch) -> str:
    return f"{batch.name}-searches"
