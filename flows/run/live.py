"""The live objects of a run (policy, sampler, retriever, storage) in one context, and how a stage is performed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, TypeVar

from flows.data.questions import Questions
from flows.retrieval.live import LiveRetriever
from flows.run.model_files import model_fingerprint, model_hashes
from flows.run.policy import LivePolicy, set_threads
from flows.run.progress import Reporter
from flows.run.prompts import LivePrompts, former_frame
from flows.run.sampler import PolicySampler, open_sampler
from flows.run.stage_inputs import input_hash
from flows.settings.load import stored_settings
from schemas.base import Record
from schemas.records.ledger import ArtifactRef, StageKey, StageName, StageRecord
from schemas.records.update import UpdateReport
from schemas.settings.data import SetName
from schemas.settings.root import HindsightSettings, Settings
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from sdsearch.seeds import derive_seed
from storage.database.stage_rows import file_of, rows_of
from storage.database.sync import count_rows
from storage.disk.signals import signals_deferred
from storage.errors import DamagedArtifactError
from storage.runs.hashes import hash_of
from storage.runs.ledger import finish
from storage.runs.lock import RunLock
from storage.runs.partial import PartialResults
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)


Work = Callable[[StageRecord], Sequence[ArtifactRef]]
"""A stage's own work: takes the attempt that it runs as, leaves durable files."""

_SEARCHING = ("sample", "evaluate")


class Runtime:
    """One run's live objects; made by `open_runtime`, found by stages through `runtime_of`."""

    def __init__(
        self, settings: Settings, run: str, storage: Storage, reporter: Reporter, source: str | None = None
    ) -> None:
        self.settings = settings
        self.run = run
        self.source = source  # The run whose weights and done stages a replay uses.
        self.storage = storage
        self.reporter = reporter
        self.may_write: Callable[[], None] = lambda: None
        self._recent: dict[str, list[Any]] = {}
        self.questions = Questions(settings.data, lambda questions: self.prompts.find_unfit(questions))
        self._noted: set[str] = set()

    @cached_property
    def policy(self) -> LivePolicy:
        return LivePolicy(self.settings, self.source or self.run, self.storage.checkpoints)

    @cached_property
    def sampler(self) -> PolicySampler:
        return open_sampler(self.settings, self.run, self.storage.workspace.root.resolve())

    @cached_property
    def base_fingerprint(self) -> str:
        return model_fingerprint(self.settings.model.path, self.base_hashes)

    @cached_property
    def base_hashes(self) -> dict[str, str]:
        """The hash of each file that the starting weights and their tokenizer are read from."""
        return model_hashes(self.settings.model.path, partial(hash_of, self.storage.workspace))

    @cached_property
    def _retriever(self) -> LiveRetriever:
        return LiveRetriever(self.settings.retrieval, self.storage.workspace)

    @cached_property
    def prompts(self) -> LivePrompts:
        """The prompts as the run was begun with them, or the run whose policy it goes on with; else as made now."""
        kept = read_run_inputs(self.storage.workspace, self.run)
        former = former_frame(self.storage, self.run, self.source) if kept is None else None
        return LivePrompts(self.settings.rollout, kept, former, self.policy, self.sampler)

    def note_once(self, subject: str, sentence: str) -> None:
        """Tell a person what they should know, the first time that the subject comes up."""
        if subject not in self._noted:
            self._noted.add(subject)
            self.reporter.noted(sentence)

    @property
    def index_fingerprint(self) -> str:
        return self._retriever.fingerprint

    def try_search(self) -> None:
        """Ask the retriever once; RetrieverDownError where it cannot answer."""
        self._retriever.try_search(self.settings.retrieval.num_passages)

    @property
    def evaluated_set(self) -> SetName:
        """What the run itself is evaluated on."""
        return SetName(self.settings.data.dataset, self.settings.evaluation.split)

    def rollout_loop(self, policy_version: int) -> RolloutLoop:
        """Return the loop that rolls out with the weights of `policy_version`."""
        self.policy.move_to(policy_version)
        context_tokens = self.sampler.max_context_tokens(self.policy)
        limits = RolloutLimits.of(self.settings.rollout, self.settings.retrieval.num_passages, context_tokens)
        sampler = self.sampler.at(self.policy)
        return RolloutLoop(self.policy.tokenizer, sampler, self._retriever.retriever, limits, self.prompts.frame)

    def perform(
        self,
        stage: StageName,
        iteration: int,
        upstream: Sequence[StageRecord | str],
        work: Work,
    ) -> StageRecord:
        """Do a stage's work and commit it, or return the record of the attempt that did it with the same inputs."""
        key = StageKey(run=self.run, iteration=iteration, stage=stage)
        return self._do(key, input_hash(self.settings, stage, upstream), work)

    def adopt(self, stage: StageName, iteration: int) -> StageRecord:
        """Make a done stage of the source this run's own: its files are referred to, its rows are written again.

        DamagedArtifactError when a file is missing or altered.
        """
        key = StageKey(run=self.run, iteration=iteration, stage=stage)
        donor = self._donor(key)
        assert donor is not None, f"{self.source} has not done {stage} of iteration {iteration}"
        for output in donor.outputs:
            self.storage.artifacts.verify(output)
        return self._do(key, donor.input_hash, lambda _: donor.outputs)

    def _do(self, key: StageKey, input_hash: str, work: Work) -> StageRecord:
        done = self.storage.ledger.find_done(key, input_hash)
        self.reporter.stage_started(key)
        if done is not None:
            PartialResults(self.storage.artifacts, done).remove()
            self.reporter.stage_done(done, skipped=True)
            return done
        donor = self._intact_donor(key, input_hash)
        self.may_write()
        seed = derive_seed(self.settings.seed, key.stage, key.iteration)
        record = self.storage.ledger.begin(key, input_hash, seed, donor.run if donor else None)
        try:
            record = finish(record, donor.outputs if donor else work(record))
            rows = rows_of(record, self.storage.ledger.done(record.key_of("sample")), self._outcomes, self.read)
        except BaseException as error:
            # Whatever ended the attempt is told to the ledger and goes on its way. What is no Exception came from
            # outside: Ctrl-C, SIGTERM, a cancellation.
            self._record_failure(record, error, interrupted=not isinstance(error, Exception))
            raise
        report = self.sampler.release() if "sampler" in vars(self) else None
        found = self._retriever.take_report() if key.stage in _SEARCHING and donor is None else None
        reports = {"sampling": report, "retrieval": donor.retrieval if donor else found}
        record = record.model_copy(update={"num_rows": count_rows(record, rows), **reports})
        self.may_write()
        self.storage.ledger.commit(record)
        PartialResults(self.storage.artifacts, record).remove()
        self.storage.sync.put_stage(key, rows)
        self.reporter.stage_done(record, skipped=False)
        return record

    def _donor(self, key: StageKey) -> StageRecord | None:
        """Return the attempt that did a stage in the source, None when there is none."""
        return self.storage.ledger.done(key.model_copy(update={"run": self.source})) if self.source else None

    def _intact_donor(self, key: StageKey, input_hash: str) -> StageRecord | None:
        """Return the source's attempt that had the same inputs and whose files verify."""
        donor = self._donor(key)
        if donor is None or donor.input_hash != input_hash:
            return None
        try:
            for output in donor.outputs:
                self.storage.artifacts.verify(output)
        except DamagedArtifactError as error:
            logger.warning("%s of iteration %d is done again: %s", key.stage, key.iteration, error)
            return None
        return donor

    @cached_property
    def _outcomes(self) -> HindsightSettings:
        """What calls a rollout CORRECT: the settings of the run that scored it."""
        if self.source is None:
            return self.settings.hindsight
        return stored_settings(self.storage.ledger.get_run(self.source)).hindsight

    def close(self) -> None:
        """End what the run started."""
        if "sampler" in vars(self):
            self.sampler.close()
        if "_retriever" in vars(self):
            self._retriever.close()

    def _record_failure(self, record: StageRecord, error: BaseException, interrupted: bool) -> None:
        self.policy.abandon()
        text = f"{type(error).__name__}: {error}"
        with signals_deferred():
            try:
                self.storage.ledger.fail(record, text, "interrupted" if interrupted else "failed")
                self.storage.sync.put_stage(record.key)
            except Exception:  # the first error is the one to report; the ledger notices a dead attempt by itself
                logger.warning("the ledger could not record that %s failed: %s", record.stage, text)

    def partial_result(
        self, attempt: StageRecord, name: str, record_type: type[R], make: Callable[[], list[R]]
    ) -> list[R]:
        """Return a part of a stage: as an earlier attempt with the same inputs finished it, or made now."""
        partial_results = PartialResults(self.storage.artifacts, attempt)
        found = partial_results.read(name, record_type)
        if found is None:
            found = make()
            partial_results.write(name, record_type, found)
        return found

    def write(self, record: StageRecord, name: str, record_type: type[R], records: Sequence[R]) -> ArtifactRef:
        """Write a stage's file; later stages of the iteration need not read it from the disk."""
        ref = self.storage.artifacts.write_records(record.key, name, record_type, records)
        self._recent[ref.sha256] = list(records)
        return ref

    def read(self, record: StageRecord, name: str, record_type: type[R]) -> list[R]:
        """Return the records of a stage's file; they are frozen, so those just written or read serve again."""
        ref = file_of(record, name)
        if ref.sha256 not in self._recent:
            self._recent[ref.sha256] = self.storage.artifacts.read_records(ref, record_type)
        return self._recent[ref.sha256]

    def forget_records(self) -> None:
        """Free the memory of the records that an iteration read and wrote."""
        self._recent.clear()

    def advance(self, updated: StageRecord) -> None:
        """Put the run's record at the version that an update left; one that is further on stays."""
        run = self.storage.ledger.get_run(self.run)
        (report,) = self.read(updated, "update", UpdateReport)
        if (run.policy_version, run.policy_sha256) == (report.policy_version, report.policy_sha256):
            return
        if report.policy_version < run.policy_version:
            return
        changes = {
            "iterations_done": report.iteration,
            "policy_version": report.policy_version,
            "policy_sha256": report.policy_sha256,
            "updated_at": datetime.now(UTC),
        }
        self.storage.update_run(run.model_copy(update=changes))


_RUNTIMES: dict[str, Runtime] = {}


def runtime_of(run: str) -> Runtime:
    """Return the open runtime of a run: tasks get a run's name, never its live objects."""
    return _RUNTIMES[run]


@contextmanager
def open_runtime(
    settings: Settings,
    run: str,
    storage: Storage,
    reporter: Reporter,
    lock: RunLock,
    source: str | None = None,
) -> Iterator[Runtime]:
    """Open a run's live objects; models and indexes load when a stage first needs them.

    Nothing enters the ledger any more once the run was taken from the process that holds `lock`.
    """
    set_threads(settings)
    runtime = Runtime(settings, run, storage, reporter, source)
    runtime.may_write = lock.check
    _RUNTIMES[run] = runtime
    try:
        yield runtime
    finally:
        del _RUNTIMES[run]
        runtime.close()
