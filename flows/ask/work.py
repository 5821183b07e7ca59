"""Asks a policy: one question, one rollout, the same that an evaluation gives."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from flows.ask.blocks import ShownBlock, find_block
from flows.ask.plan import AskPlan, as_question
from flows.ask.steps import steps_of
from flows.console.errors import UserError
from flows.run.inputs import check_source_model
from flows.run.live import Runtime, open_runtime
from flows.run.policy import check_device
from flows.run.progress import SilentReporter
from schemas.records.asking import AskStep, EndStep
from schemas.records.question import Question
from schemas.records.rollout import Group, Turn
from sdsearch.evaluation.answering import Asking, roll_out_once
from sdsearch.retrieval.ports import RetrieverDownError
from sdsearch.sampling.rollouts import RolloutLoop
from storage.errors import DamagedArtifactError
from storage.storage import Storage


class Audience(Protocol):
    """Is shown an answer while it is made: each token, each turn when it is over, and the steps that these came to."""

    def token(self, loop: RolloutLoop, token_id: int) -> None: ...

    def turn(self, turn: Turn) -> None: ...

    def step(self, step: AskStep) -> None: ...

    def break_line(self) -> None:
        """Leave no line half written: the answer ends here."""


class Agent:
    """A policy that is loaded, with its retriever; made by `open_agent`."""

    def __init__(self, live: Runtime, plan: AskPlan, version: int, hindsight: str | None, audience: Audience) -> None:
        self.version = version
        self._live = live
        self._plan = plan
        self._hindsight = hindsight
        self._audience = audience
        self._num_turns = 0
        self._loop = live.rollout_loop(version, self)

    def ask(self, text: str) -> Group:
        """Answer a question, the audience looking on, and return the rollout in its group.

        Raises UserError for a question that is empty or too long, for one that --hindsight's run has no block of, and
        when a search fails.
        """
        question = as_question(text)
        self._live.prompts.measure.check(question.question)
        block = self._block(question)
        if block is not None:
            self._audience.step(block.step)
        self._num_turns = 0
        settings, began = self._live.settings, time.monotonic()
        asking = Asking(self._plan.mode, settings.rollout.temperature, settings.evaluation.seed, self.version)
        shown = block.token_ids if block else ()
        try:
            (group,) = roll_out_once(self._loop, [question], asking, lambda question, index: shown)
        except RetrieverDownError as error:
            if not error.names_query:
                raise
            raise UserError(f"{error.failure}; repair it, then ask again") from error
        self._audience.step(self._end(group, time.monotonic() - began))
        return group

    def token_sampled(self, rollout_id: str, token_id: int) -> None:
        """Show a token."""
        self._audience.token(self._loop, token_id)

    def turn_ended(self, rollout_id: str, turn: Turn, *, ends_rollout: bool) -> None:
        """Show what a turn came to."""
        self._num_turns += 1
        self._audience.turn(turn)
        for step in steps_of(self._loop, self._num_turns, turn):
            self._audience.step(step)

    def _block(self, question: Question) -> ShownBlock | None:
        if self._hindsight is None:
            return None
        return find_block(self._live.storage, self._hindsight, question.question, self._loop)

    def _end(self, group: Group, seconds: float) -> EndStep:
        (rollout,) = group.rollouts
        num_sampled = len(rollout.completion_positions)
        return EndStep(
            question=group.question.question,
            policy=self._plan.title(self.version),
            policy_version=self.version,
            mode=self._plan.mode,
            answer=rollout.answer,
            queries=rollout.queries,
            stop_reason=rollout.turns[-1].generation.stop_reason,
            num_turns=len(rollout.turns),
            num_prompt_tokens=len(group.prompt_token_ids),
            num_completion_tokens=num_sampled,
            num_observation_tokens=len(rollout.token_ids) - num_sampled,
            seconds=seconds,
        )


@contextmanager
def open_agent(plan: AskPlan, storage: Storage, hindsight: str | None, audience: Audience) -> Iterator[Agent]:
    """Load the policy to ask; `hindsight` is the run whose blocks it is shown.

    Raises RunNotFoundError for a run that is not there, DamagedArtifactError for weights that are missing or altered,
    UserError for a model or a device that cannot be used.
    """
    if hindsight is not None:
        storage.ledger.get_run(hindsight)
    # A name that is no run's: adapters on servers and what a run kept of its start belong to their runs.
    name = f"ask-{uuid.uuid4().hex}"
    with open_runtime(plan.settings, name, storage, SilentReporter(), plan.source) as live:
        check_device(plan.settings.model.device)
        yield _load(live, plan, hindsight, audience)


def _load(live: Runtime, plan: AskPlan, hindsight: str | None, audience: Audience) -> Agent:
    """Load the run's newest policy; where a training that goes on has removed it meanwhile, the one that came after."""
    if plan.source is None:
        return Agent(live, plan, 0, hindsight, audience)
    version = live.storage.ledger.get_run(plan.source).policy_version
    while True:
        check_source_model(live, version)
        try:
            return Agent(live, plan, version, hindsight, audience)
        except DamagedArtifactError:
            newest = live.storage.ledger.get_run(plan.source).policy_version
            if newest == version:
                raise
            version = newest
