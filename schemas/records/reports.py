"""What the sampler and the retriever did in a stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Record


class RetriedQuery(Record):
    """A query whose search needed more than one request."""

    query: str = Field(description="What was searched for.")
    num_retries: int = Field(ge=1, description="Requests with it that were repeated.")


class RetrievalReport(Record):
    """What the retriever did in one stage."""

    retriever: str = Field(description="The kind in the settings, such as dense or http.")
    index_hash: str = Field(description="Fingerprint of what was searched.")
    num_queries: int = Field(description="Queries of the stage.")
    num_cached: int = Field(description="Those of them that were not searched: the cache or the same call had them.")
    cache_hit_share: float = Field(description="num_cached / num_queries; 0 where there were none.")
    num_retries: int = Field(description="Requests to servers that were repeated.")
    seconds: float = Field(description="Seconds spent on searches.")
    retried: tuple[RetriedQuery, ...] = Field(
        default=(), description="The queries whose requests were repeated, as they were first asked."
    )


class SamplingReport(Record):
    """What an engine did in one stage."""

    sampler: Literal["vllm", "vllm_server"] = Field(description="vllm: an engine of this run; vllm_server: servers.")
    num_turns: int = Field(description="Turns that were generated.")
    num_sampled_tokens: int = Field(description="Tokens that were generated.")
    num_prompt_tokens: int = Field(description="Tokens of the turns' whole prompts, history included.")
    num_cached_tokens: int = Field(description="Those of them that the engine took from its prefix cache.")
    num_resent_turns: int = Field(description="Turns that a server did not finish and another one did.")
    seconds: float = Field(description="Seconds from the first turn sent to the last one ended.")
    tokens_per_s: float = Field(description="Generated tokens per second.")
    cache_hit_share: float = Field(description="num_cached_tokens / num_prompt_tokens.")
    mean_concurrency: float = Field(description="Turns being generated at one time, mean over the seconds.")
    retrieval_s: float = Field(
        description="Seconds in which the environment was replying; other turns may continue meanwhile."
    )
    stalled_s: float = Field(description="Seconds in which every rollout waited for the environment.")
    probe_max_difference: float = Field(
        description="Largest difference of the engine's and the trainer's log-probabilities on the probe, nats."
    )
    probe_mean_difference: float = Field(description="Mean of these differences, nats.")
