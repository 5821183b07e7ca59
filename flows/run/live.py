"""The live objects of a run (policy, sampler, retriever, prompts, questions) in one context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Final

from flows.data.questions import Questions
from flows.retrieval.live import LiveRetriever
from flows.run.model_files import model_fingerprint, model_hashes
from flows.run.policy import LivePolicy, set_threads
from flows.run.progress import Reporter
from flows.run.prompts import LivePrompts, former_frame
from flows.run.sampler import PolicySampler, open_sampler
from schemas.records.reports import RetrievalReport, SamplingReport
from schemas.settings.data import SetName
from schemas.settings.root import Settings
from sdsearch.protocol.ports import ActionProtocol, open_protocol
from sdsearch.sampling.ports import NoListener, RolloutListener
from sdsearch.sampling.rollouts import RolloutLimits, RolloutLoop
from storage.runs.hashes import hash_of
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage

LIVE_CODE: Final = (__name__, "flows.run.policy", "flows.run.prompts", "flows.run.sampler", "flows.retrieval.open")
"""The modules that make the live objects of a stage which rolls out."""


class Runtime:
    """One run's live objects; made by `open_runtime`, handed to the stages that need them."""

    def __init__(
        self, settings: Settings, run: str, storage: Storage, reporter: Reporter, source: str | None = None
    ) -> None:
        self.settings = settings
        self.run = run
        self.source = source  # The run whose weights and done stages a replay uses.
        self.storage = storage
        self.reporter = reporter
        self.questions = Questions(settings.data, lambda questions: self.prompts.find_unfit(questions))
        self._noted: set[str] = set()
        self._started = ExitStack()

    @cached_property
    def policy(self) -> LivePolicy:
        run = self.source or self.run
        return LivePolicy(self.settings, run, self.storage.checkpoints, self.storage.ledger.start_of(run))

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
        return self.settings.evaluation.main_set(self.settings.data).name

    @property
    def evaluated_sets(self) -> tuple[SetName, ...]:
        """All that the run is evaluated on while it trains, what it itself is evaluated on first."""
        return tuple(each.name for each in self.settings.evaluation.sets_of_run(self.settings.data))

    @cached_property
    def protocol(self) -> ActionProtocol:
        """How the policy searches and answers."""
        return open_protocol(self.settings.rollout)

    def rollout_loop(self, policy_version: int, listener: RolloutListener | None = None) -> RolloutLoop:
        """Return the loop that rolls out with the weights of `policy_version`; `listener` is told of what it does."""
        self.policy.move_to(policy_version)
        context_tokens = self.sampler.max_context_tokens(self.policy)
        limits = RolloutLimits.of(self.settings.rollout, self.settings.retrieval.num_passages, context_tokens)
        return RolloutLoop(
            self.policy.tokenizer,
            self.sampler.at(self.policy, listener),
            self._retriever.retriever,
            limits,
            self.prompts.frame,
            self.protocol,
            listener or NoListener(),
        )

    def take_reports(self, *, searching: bool) -> dict[str, SamplingReport | RetrievalReport | None]:
        """Return what sampler and retriever did since the last call, as a stage's record keeps it.

        The sampler lets go of what it holds for its engine. `searching` is False for stages that do not search.
        """
        return {
            "sampling": self.sampler.release() if "sampler" in vars(self) else None,
            "retrieval": self._retriever.take_report() if searching else None,
        }

    def add_searches(self, report: RetrievalReport) -> None:
        """Count what another process searched for this run's stage."""
        self._retriever.add_report(report)

    def abandon(self) -> None:
        """Forget the live weights, which a stage that failed may have left at no version."""
        if "policy" in vars(self):
            self.policy.abandon()

    def at_close(self, end: Callable[[], None]) -> None:
        """Have something that was started for the run ended with it."""
        self._started.callback(end)

    def close(self) -> None:
        """End what the run started."""
        self._started.close()
        if "sampler" in vars(self):
            self.sampler.close()
        if "_retriever" in vars(self):
            self._retriever.close()


@contextmanager
def open_runtime(
    settings: Settings, run: str, storage: Storage, reporter: Reporter, source: str | None = None
) -> Iterator[Runtime]:
    """Open a run's live objects; models and indexes load when a stage first needs them."""
    set_threads(settings)
    runtime = Runtime(settings, run, storage, reporter, source)
    try:
        yield runtime
    finally:
        runtime.close()
