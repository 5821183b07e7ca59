"""The multi-turn loop: the policy's turns, the retriever's replies, and the caps on both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, assert_never

from transformers import PreTrainedTokenizerBase

from schemas.errors import UserError
from schemas.records.question import Question
from schemas.records.rollout import Answer, Generation, Group, Malformed, Observation, Rollout, Search, Turn
from schemas.records.run_inputs import PromptFrame
from schemas.settings.root import RolloutSettings
from sdsearch.protocol.parsing import TAG_PROTOCOL, make_generation
from sdsearch.protocol.ports import ActionProtocol
from sdsearch.protocol.prompting import PromptTokens, render_documents, render_notice, render_prompt
from sdsearch.retrieval.ports import Retriever, search_all
from sdsearch.sampling.ports import NoListener, RolloutListener, SampledTurn, Sampler, TurnRequest
from sdsearch.seeds import derive_seed


@dataclass(frozen=True)
class RolloutLimits:
    """Caps of a rollout (paper-scale values in brackets)."""

    max_searches: int  # [4]; one more generation may answer after the last search
    max_new_tokens: int  # [512] sampled tokens a turn
    max_prompt_tokens: int  # [2048]
    max_observation_tokens: int  # [512], the closing tag always kept
    max_context_tokens: int  # what the model can attend to
    num_passages: int  # [3] a query

    @classmethod
    def of(cls, settings: RolloutSettings, num_passages: int, max_context_tokens: int) -> RolloutLimits:
        """Return the limits that the settings set, for a model that can attend to so many tokens."""
        return cls(
            max_searches=settings.max_searches,
            max_new_tokens=settings.max_new_tokens,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_observation_tokens=settings.max_observation_tokens,
            max_context_tokens=max_context_tokens,
            num_passages=num_passages,
        )


class BlockFor(Protocol):
    """Hindsight tokens to put before a question's task prompt (none at inference: the plain policy)."""

    def __call__(self, question: Question, index: int) -> Sequence[int]: ...


def no_block(question: Question, index: int) -> Sequence[int]:
    """The plain policy, as the paper trains and evaluates it."""
    return ()


@dataclass
class _Conversation:
    """A rollout under way."""

    id: str
    group_id: str
    index: int
    num_tokens: int
    seed_parts: tuple[str | int, ...]
    turns: list[Turn] = field(default_factory=list)

    def finished(self) -> Rollout:
        return Rollout(id=self.id, group_id=self.group_id, index=self.index, turns=tuple(self.turns))


class Branch(NamedTuple):
    """A stored rollout that is sampled anew from one of its turns on; `draw` tells several of them apart."""

    group: Group
    rollout: Rollout
    turn: int
    draw: int


@dataclass(frozen=True)
class RolloutLoop:
    """Rolls out groups: the environment's side of `Sampler.converse`."""

    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    retriever: Retriever
    limits: RolloutLimits
    frame: PromptFrame
    protocol: ActionProtocol = TAG_PROTOCOL
    listener: RolloutListener = field(default_factory=NoListener)

    def roll_out(
        self,
        questions: Sequence[Question],
        *,
        run_seed: int,
        iteration: int,
        policy_version: int,
        group_size: int,
        temperature: float,
        first_index: int = 0,
        block_for: BlockFor = no_block,
    ) -> list[Group]:
        """Sample `group_size` rollouts of each question, all in one batch; seeds come from identity alone.

        first_index: the first one's place in its group, above 0 where earlier ones have the places before it.

        Raises RetrieverDownError when a search fails, ValueError for a prompt that is too long.
        """
        prompts = [self._prompt(question) for question in questions]
        conversations: dict[str, _Conversation] = {}
        openings: list[TurnRequest] = []
        for question, prompt in zip(questions, prompts, strict=True):
            for index in range(first_index, first_index + group_size):
                tokens = (*prompt.head, *block_for(question, index), *prompt.body)
                group_id = group_id_of(iteration, question)
                conversation = _Conversation(
                    id=f"{group_id}/{index}",
                    group_id=group_id,
                    index=index,
                    num_tokens=len(tokens),
                    seed_parts=(run_seed, iteration, question.key, index),
                )
                conversations[conversation.id] = conversation
                openings.append(self._request(conversation, tokens, temperature))
        self.sampler.converse(openings, lambda turns: self._respond(conversations, turns, temperature))
        rollouts = iter(conversation.finished() for conversation in conversations.values())
        return [
            Group(
                id=group_id_of(iteration, question),
                iteration=iteration,
                policy_version=policy_version,
                question=question,
                prompt_token_ids=prompt.token_ids,
                block_offset=len(prompt.head),
                rollouts=tuple(next(rollouts) for _ in range(group_size)),
            )
            for question, prompt in zip(questions, prompts, strict=True)
        ]

    def branch_off(self, branches: Sequence[Branch], *, seed: int, temperature: float) -> list[Rollout]:
        """Sample stored rollouts anew from a turn on, all in one batch; what stands before the turn stays.

        Seeds come from identity alone, as of `roll_out`. Raises RetrieverDownError when a search fails.
        """
        conversations: dict[str, _Conversation] = {}
        openings: list[TurnRequest] = []
        for group, rollout, turn, draw in branches:
            tokens = (*group.prompt_token_ids, *rollout.token_ids[: rollout.num_tokens_before(turn)])
            conversation = _Conversation(
                id=f"{rollout.id}/{turn}/{draw}",
                group_id=group.id,
                index=draw,
                num_tokens=len(tokens),
                seed_parts=(seed, "branch", rollout.id, turn, draw),
                turns=list(rollout.turns[:turn]),
            )
            conversations[conversation.id] = conversation
            openings.append(self._request(conversation, tokens, temperature))
        self.sampler.converse(openings, lambda turns: self._respond(conversations, turns, temperature))
        return [conversation.finished() for conversation in conversations.values()]

    def _prompt(self, question: Question) -> PromptTokens:
        prompt = render_prompt(self.tokenizer, question.question, self.frame, self.protocol)
        if len(prompt.token_ids) > self.limits.max_prompt_tokens:
            raise UserError(
                f"the prompt of question '{question.key}' has {len(prompt.token_ids)} tokens, at most "
                f"{self.limits.max_prompt_tokens} are allowed; raise rollout.max_prompt_tokens or drop the question"
            )
        if len(prompt.token_ids) >= self.limits.max_context_tokens:
            raise UserError(
                f"the prompt of question '{question.key}' has {len(prompt.token_ids)} tokens, the model can attend to "
                f"{self.limits.max_context_tokens}; choose a model with a longer context or drop the question"
            )
        return prompt

    def _request(self, conversation: _Conversation, tokens: tuple[int, ...], temperature: float) -> TurnRequest:
        room = self.limits.max_context_tokens - conversation.num_tokens
        if room < 1:
            raise UserError(
                f"'{conversation.id}' begins with {conversation.num_tokens} tokens, its block included, the model can "
                f"attend to {self.limits.max_context_tokens}; give it a shorter block"
            )
        return TurnRequest(
            key=conversation.id,
            token_ids=tokens,
            seed=derive_seed(*conversation.seed_parts, len(conversation.turns)),
            max_new_tokens=min(self.limits.max_new_tokens, room),
            temperature=temperature,
        )

    def _respond(
        self, conversations: dict[str, _Conversation], sampled: Sequence[SampledTurn], temperature: float
    ) -> list[TurnRequest]:
        """Read the ended turns, search for all their queries at once, and continue whoever may go on."""
        generations = [
            make_generation(self.tokenizer, turn.token_ids, turn.logprobs, turn.stop_reason, self.protocol)
            for turn in sampled
        ]
        observations = self._observe([conversations[turn.key] for turn in sampled], generations)
        requests = []
        for turn, generation, observation in zip(sampled, generations, observations, strict=True):
            conversation = conversations[turn.key]
            num_reply = len(observation.token_ids) if observation else 0
            conversation.num_tokens += len(generation.token_ids) + num_reply
            if conversation.num_tokens >= self.limits.max_context_tokens:
                observation = None
            action = self.protocol.parse(generation.text)
            ended = Turn(generation=generation, action=action, observation=observation)
            conversation.turns.append(ended)
            self.listener.turn_ended(conversation.id, ended, ends_rollout=observation is None)
            if observation is not None:
                requests.append(self._request(conversation, observation.token_ids, temperature))
        return requests

    def _observe(
        self, conversations: Sequence[_Conversation], generations: Sequence[Generation]
    ) -> list[Observation | None]:
        """Return the environment's reply to each turn; None ends the rollout (an answer, or the last turn)."""
        actions = [self.protocol.parse(generation.text) for generation in generations]
        may_go_on = [len(conversation.turns) < self.limits.max_searches for conversation in conversations]
        queries = [a.query for a, going in zip(actions, may_go_on, strict=True) if going and isinstance(a, Search)]
        found = iter(search_all(self.retriever, queries, self.limits.num_passages))
        replies: list[Observation | None] = []
        for generation, action, going in zip(generations, actions, may_go_on, strict=True):
            last = generation.token_ids[-1]
            match action:
                case Search() if going:
                    limit = self.limits.max_observation_tokens
                    replies.append(render_documents(self.tokenizer, next(found), limit, self.protocol, last))
                case Malformed(reason=reason) if going:
                    replies.append(render_notice(self.tokenizer, reason, self.protocol, last))
                case Search() | Malformed() | Answer():
                    replies.append(None)
                case unknown:
                    assert_never(unknown)
        return replies


def group_id_of(iteration: int, question: Question) -> str:
    """Return the group's id, unique over iterations and data sets."""
    return f"{iteration:05d}/{question.key}"
