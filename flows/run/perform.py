"""How a stage is performed: its work is done once for the same inputs, and what came of it is committed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TypeVar

from flows.run.live import Runtime
from flows.run.sources import describe_changes
from flows.run.stage_files import StageFiles
from flows.run.stage_inputs import StageKind, code_hash, input_hash, stage_sources
from flows.settings.load import stored_settings
from schemas.base import Record
from schemas.records.ledger import StageKey, StageName, StageRecord
from schemas.records.update import UpdateReport
from schemas.settings.root import HindsightSettings
from sdsearch.plugins import blaming_plugins
from sdsearch.seeds import derive_seed
from storage.database.stage_rows import rows_of
from storage.database.sync import count_rows
from storage.disk.signals import signals_deferred
from storage.runs.ledger import finish
from storage.runs.partial import PartialResults
from storage.runs.sources import keep_sources, kept_sources

logger = logging.getLogger(__name__)
R = TypeVar("R", bound=Record)
_SEARCHING = ("sample", "evaluate")


class Attempt:
    """An attempt at a stage; where `needed`, the stage does its work now and leaves its files here."""

    def __init__(self, record: StageRecord, files: StageFiles, partial_results: PartialResults, needed: bool) -> None:
        self.record = record  # Once the attempt is over: the one that did the stage.
        self.needed = needed
        self.outputs = list(record.outputs)
        self.num_ranks = record.num_ranks
        self._files = files
        self._partial_results = partial_results

    def write(self, name: str, record_type: type[R], records: Sequence[R]) -> None:
        """Write one of the stage's files."""
        self.outputs.append(self._files.write(self.record.key, name, record_type, records))

    def find_partial(self, name: str, record_type: type[R]) -> list[R] | None:
        """Return a part of the stage that an earlier attempt with the same inputs finished, None where none did."""
        return self._partial_results.read(name, record_type)

    def keep_partial(self, name: str, record_type: type[R], records: list[R]) -> list[R]:
        """Make a part of the stage durable, and return it."""
        self._partial_results.write(name, record_type, records)
        return records


class StageRunner:
    """Performs the stages of one open run.

    may_write: raises once the run was taken from this process. num_done: iterations up to here were done before; what
    is done of them is taken as it is, also where the code that did it has changed.
    """

    def __init__(self, live: Runtime, may_write: Callable[[], None] = lambda: None, num_done: int = -1) -> None:
        self.settings = live.settings
        self.run = live.run
        self.reporter = live.reporter
        self.storage = live.storage
        self.files = StageFiles(live.storage.artifacts)
        self.note_once = live.note_once
        self._live = live
        self._may_write = may_write
        self._num_done = num_done
        self._has_changed = False  # A stage gave another result than it did before.

    @contextmanager
    def attempt(self, stage: StageKind, iteration: int, upstream: Sequence[StageRecord | str]) -> Iterator[Attempt]:
        """Open an attempt at a stage; at the end of the block it is committed, or its error recorded.

        Work that was done with the same inputs, here or in the run that this one takes its stages from, is not needed
        again. `upstream` is what the stage reads: records of stages, or hashes.
        """
        key, sources = self._key(stage.name, iteration), stage_sources(self.settings, stage)
        code = code_hash(sources)
        inputs = input_hash(self.settings, stage, upstream, code)
        accepted = inputs
        former = self.storage.ledger.done(key)
        if former is not None and former.input_hash != inputs and iteration <= self._num_done:
            by_former_code = input_hash(self.settings, stage, upstream, former.code_hash)
            # Attempts of programs that kept no hash of their code are taken as they are, while nothing before changed.
            is_taken = not former.code_hash and not self._has_changed
            accepted = former.input_hash if is_taken else by_former_code
        done = self.storage.ledger.find_done(key, accepted)
        if done is None:
            self._tell_why(key, inputs, sources, lambda code: input_hash(self.settings, stage, upstream, code))
            keep_sources(self.storage.workspace, self.run, code, sources)
        with self._attempt(key, inputs, code, done) as attempt:
            yield attempt

    def adopt(self, stage: StageName, iteration: int) -> StageRecord:
        """Make a done stage of the source this run's own: its files are referred to, its rows are written again.

        DamagedArtifactError when a file is missing or altered.
        """
        key = self._key(stage, iteration)
        donor = self._donor(key)
        assert donor is not None, f"{self._live.source} has not done {stage} of iteration {iteration}"
        self.storage.artifacts.verify_outputs(donor)
        done = self.storage.ledger.find_done(key, donor.input_hash)
        with self._attempt(key, donor.input_hash, donor.code_hash, done) as attempt:
            pass
        return attempt.record

    def advance(self, report: UpdateReport) -> None:
        """Put the run's record at the version that an update left; one that is further on stays."""
        run = self.storage.ledger.get_run(self.run)
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

    @contextmanager
    def _attempt(self, key: StageKey, input_hash: str, code: str, done: StageRecord | None) -> Iterator[Attempt]:
        self.reporter.stage_started(key)
        if done is not None:
            PartialResults(self.storage.artifacts, done).remove()
            self.reporter.stage_done(done, skipped=True)
            yield self._opened(done, needed=False)
            return
        donor = self._intact_donor(key, input_hash)
        self._may_write()
        seed = derive_seed(self.settings.seed, key.stage, key.iteration)
        record = self.storage.ledger.begin(key, input_hash, seed, donor.run if donor else None, code)
        attempt = self._opened(record, needed=donor is None)
        try:
            with blaming_plugins():
                yield attempt
            record = finish(record, donor.outputs if donor else attempt.outputs)
            record = record.model_copy(update={"num_ranks": donor.num_ranks if donor else attempt.num_ranks})
            rows = rows_of(record, self.storage.ledger.done(record.key_of("sample")), self._outcomes, self.files.read)
        except BaseException as error:
            # Whatever ended the attempt is told to the ledger and goes on its way. What is no Exception came from
            # outside: Ctrl-C, SIGTERM, a cancellation.
            self._record_failure(record, error, interrupted=not isinstance(error, Exception))
            raise
        reports = self._live.take_reports(searching=key.stage in _SEARCHING and donor is None)
        if donor is not None:
            reports["retrieval"] = donor.retrieval
        record = record.model_copy(update={"num_rows": count_rows(record, rows), **reports})
        self._may_write()
        known = [earlier.output_hash for earlier in self.storage.ledger.history(key).attempts if earlier.output_hash]
        self._has_changed |= bool(known) and known[-1] != record.output_hash
        self.storage.ledger.commit(record)
        PartialResults(self.storage.artifacts, record).remove()
        self.storage.sync.put_stage(key, rows)
        self.reporter.stage_done(record, skipped=False)
        attempt.record = record

    def _tell_why(
        self, key: StageKey, inputs: str, sources: Mapping[str, str], hash_with: Callable[[str], str]
    ) -> None:
        """Say, once for each kind of stage, why work that was begun or done before is done anew.

        hash_with: the hash of the stage's inputs, had code of a hash done it.
        """
        attempts = self.storage.ledger.history(key).attempts
        former, verb = (attempts[-1], "runs again from") if attempts else (self._donor(key), "is computed from")
        if former is None or former.input_hash == inputs:
            return
        if former.run != self.run and hash_with(former.code_hash) != former.input_hash:
            return  # A replay with other settings.
        if former.code_hash != code_hash(sources):
            known = kept_sources(self.storage.workspace, former.run, former.code_hash)
            reason = describe_changes(known, sources)
        else:
            reason = "what it reads of the stages before it changed since"
        self.note_once(f"again {key.stage}", f"{key.stage} {verb} iteration {key.iteration}: {reason}")

    def _key(self, stage: StageName, iteration: int) -> StageKey:
        return StageKey(run=self.run, iteration=iteration, stage=stage)

    def _opened(self, record: StageRecord, *, needed: bool) -> Attempt:
        return Attempt(record, self.files, PartialResults(self.storage.artifacts, record), needed)

    def _donor(self, key: StageKey) -> StageRecord | None:
        """Return the attempt that did a stage in the source, None when there is none."""
        source = self._live.source
        return self.storage.ledger.done(key.model_copy(update={"run": source})) if source else None

    def _intact_donor(self, key: StageKey, input_hash: str) -> StageRecord | None:
        """Return the source's attempt that had the same inputs and whose files verify."""
        source = self._live.source
        if source is None:
            return None
        return self.storage.ledger.find_done(key.model_copy(update={"run": source}), input_hash, is_own=False)

    @cached_property
    def _outcomes(self) -> HindsightSettings:
        """What calls a rollout CORRECT: the settings of the run that scored it."""
        if self._live.source is None:
            return self.settings.hindsight
        return stored_settings(self.storage.ledger.get_run(self._live.source)).hindsight

    def _record_failure(self, record: StageRecord, error: BaseException, interrupted: bool) -> None:
        self._live.abandon()
        text = f"{type(error).__name__}: {error}"
        with signals_deferred():
            try:
                self.storage.ledger.fail(record, text, "interrupted" if interrupted else "failed")
                self.storage.sync.put_stage(record.key)
            except Exception:  # the first error is the one to report; the ledger notices a dead attempt by itself
                logger.warning("the ledger could not record that %s failed: %s", record.stage, text)
