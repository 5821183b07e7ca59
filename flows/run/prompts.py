"""The prompts of a run: what stands around a question, how long a prompt may be, and which questions make none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from flows.run.model_files import model_folder
from flows.run.policy import LivePolicy
from flows.run.sampler import PolicySampler
from schemas.errors import UserError
from schemas.records.question import Question
from schemas.records.run_inputs import PromptFrame, RunInputs
from schemas.settings.root import RolloutSettings, Settings
from sdsearch.data.readers import BadRowError
from sdsearch.model.policy import CONTEXT_LIMITS, load_tokenizer
from sdsearch.protocol.parsing import TAG_PROTOCOL
from sdsearch.protocol.ports import ActionProtocol, open_protocol
from sdsearch.protocol.prompting import prompt_lengths, render_frame
from storage.errors import RunNotFoundError
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage

_CHARACTERS_A_TOKEN = 64  # More than any text has on average.
ROOM_TO_ANSWER = 16
"""Tokens of the context that a prompt leaves to the policy at least; fewer where rollout.max_new_tokens is below it."""


def longest_prompt(rollout: RolloutSettings, context_tokens: int | None) -> int:
    """Return how many tokens a prompt may have; the context does not count where it is not known."""
    if context_tokens is None:
        return rollout.max_prompt_tokens
    return min(rollout.max_prompt_tokens, context_tokens - min(ROOM_TO_ANSWER, rollout.max_new_tokens))


class LivePrompts:
    """The prompts of an open run: made once, and kept with the run."""

    def __init__(
        self,
        settings: RolloutSettings,
        kept: RunInputs | None,
        former: PromptFrame | None,
        policy: LivePolicy,
        sampler: PolicySampler,
    ) -> None:
        """Take what the run kept, else the frame of the run that it goes on from where the wording is the same."""
        self._settings = settings
        self._former = former if former and former.template == settings.wording else None
        self._kept = kept
        self._policy = policy
        self._sampler = sampler

    @cached_property
    def frame(self) -> PromptFrame:
        """What stands around each question; UserError when the tokenizer's template cannot be used."""
        known = self._kept.frame if self._kept else self._former
        return known or render_frame(
            self._policy.tokenizer, self._settings.template, open_protocol(self._settings), self._settings.wording
        )

    @property
    def are_kept(self) -> bool:
        """True when the run kept how long a prompt may be: its policy need not be loaded to tell."""
        return self._kept is not None

    @property
    def context_tokens(self) -> int | None:
        """How long a conversation may be; None while the policy is not loaded."""
        return None if self._policy.model is None else self._sampler.max_context_tokens(self._policy)

    @cached_property
    def measure(self) -> PromptMeasure:
        """Measures prompts; a new run's policy is loaded before it is asked for, since its context counts."""
        longest = self._kept.max_prompt_tokens if self._kept else longest_prompt(self._settings, self.context_tokens)
        protocol = open_protocol(self._settings)
        return PromptMeasure(self._policy.tokenizer, self.frame, longest, self._settings.max_prompt_tokens, protocol)

    def find_unfit(self, questions: Sequence[Question]) -> Mapping[str, BadRowError]:
        """Return what is wrong with the questions of which no prompt can be made, by their keys."""
        return self.measure.find_unfit(questions)


def measure_without_policy(settings: Settings, config: Mapping[str, Any]) -> PromptMeasure:
    """Return what measures prompts where no weights are loaded, with the model's `config.json` for its context.

    Raises UserError for a tokenizer or a template that cannot be used.
    """
    tokenizer = load_tokenizer(model_folder(settings.model.path), settings.model.trust_remote_code)
    text = config.get("text_config") or config
    numbered = next((text[name] for name in CONTEXT_LIMITS if isinstance(text.get(name), int)), None)
    limits = (numbered, getattr(settings.sampling, "max_model_len", 0))
    context = min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)
    rollout = settings.rollout
    protocol = open_protocol(rollout)
    frame = render_frame(tokenizer, rollout.template, protocol, rollout.wording)
    return PromptMeasure(tokenizer, frame, longest_prompt(rollout, context), rollout.max_prompt_tokens, protocol)


def former_frame(storage: Storage, run: str, source: str | None) -> PromptFrame | None:
    """Return the frame of the run whose policy a run uses or, as a fork, goes on with; None where there is none."""
    try:
        origin = source or storage.ledger.get_run(run).source
    except RunNotFoundError:
        return None
    kept = read_run_inputs(storage.workspace, origin) if origin else None
    return kept.frame if kept else None


@dataclass(frozen=True)
class PromptMeasure:
    """Measures the questions' prompts with the run's own tokenizer and frame."""

    tokenizer: PreTrainedTokenizerBase
    frame: PromptFrame
    max_tokens: int
    max_set: int  # rollout.max_prompt_tokens; where `max_tokens` is below it, the context is what limits
    protocol: ActionProtocol = TAG_PROTOCOL
    _known: dict[str, int] = field(default_factory=dict, repr=False)

    def find_unfit(self, questions: Sequence[Question]) -> Mapping[str, BadRowError]:
        """Return what is wrong with the questions whose prompt is too long, by their keys."""
        lengths = self.lengths(questions)
        return {
            question.key: BadRowError(
                f"{question.dataset}:{question.split}: the prompt of question '{question.id}' "
                f"{self._excess(question.question, length)}; {self._remedy}, or leave such questions out by "
                "data.max_dropped_share",
                "a prompt too long",
            )
            for question, length in zip(questions, lengths, strict=True)
            if length > self.max_tokens
        }

    def check(self, text: str) -> None:
        """Raise UserError for a question whose prompt is too long."""
        (length,) = self.lengths_of([text])
        if length > self.max_tokens:
            raise UserError(f"the prompt of the question {self._excess(text, length)}; ask a shorter question")

    def lengths(self, questions: Sequence[Question]) -> list[int]:
        """Return the tokens of each question's prompt."""
        return self.lengths_of([question.question for question in questions])

    def lengths_of(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of the prompt of each text."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known and self._is_measured(text)))
        self._known.update(zip(new, prompt_lengths(self.tokenizer, new, self.frame, self.protocol), strict=True))
        return [self._known[text] if self._is_measured(text) else len(text) // _CHARACTERS_A_TOKEN for text in texts]

    def _excess(self, text: str, length: int) -> str:
        """Say by how much a prompt is too long."""
        measured = "" if self._is_measured(text) else "more than "
        return f"has {measured}{length} tokens, at most {self.max_tokens} may be ({self._limit})"

    def _is_measured(self, text: str) -> bool:
        """False for a text that is too long whatever its tokens are: some MB would take minutes."""
        return len(text) <= _CHARACTERS_A_TOKEN * self.max_tokens

    @property
    def _limit(self) -> str:
        return "rollout.max_prompt_tokens" if self._is_set else "what the context holds, with room to answer"

    @property
    def _remedy(self) -> str:
        return "raise that setting" if self._is_set else "choose a model, or sampling.max_model_len, with a longer one"

    @property
    def _is_set(self) -> bool:
        return self.max_tokens == self.max_set
