"""What an evaluation is made under: read off the live objects when it is made, and kept with its answers."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import assert_never

from flows.run.live import Runtime
from schemas.base import hash_json
from schemas.records.evaluation import HASH_CHARS, EvaluationConditions, EvaluationMode
from schemas.records.ledger import StageRecord
from schemas.records.question import Question
from schemas.settings.retrieval import (
    BM25RetrievalSettings,
    DenseRetrievalSettings,
    HFEncoderSettings,
    HttpRetrievalSettings,
    HybridRetrievalSettings,
    LexicalEncoderSettings,
    PluginRetrievalSettings,
    RetrievalSettings,
)
from schemas.settings.root import RolloutSettings, Settings


def conditions_of(
    live: Runtime, attempt: StageRecord, mode: EvaluationMode, questions: Sequence[Question]
) -> EvaluationConditions:
    """Return what an attempt at an evaluation answers the questions of one data set under."""
    settings = live.settings
    corpus, retriever, encoder = searched(settings.retrieval)
    asked = sorted([question.key, question.question, sorted(question.golden_answers)] for question in questions)
    return EvaluationConditions(
        mode=mode,
        dataset=questions[0].dataset,
        split=questions[0].split,
        questions_sha256=hash_json(asked),
        corpus=corpus,
        retriever=retriever,
        encoder=encoder,
        index_hash=live.index_fingerprint,
        num_passages=settings.retrieval.num_passages,
        protocol=_protocol(settings.rollout),
        limits=_limits(settings.rollout),
        decoding=_decoding(settings, mode),
        code_version=f"{version('sdsearch')}, {attempt.code_hash[:HASH_CHARS]}",
    )


def searched(settings: RetrievalSettings) -> tuple[str, str, str]:
    """Return what is searched, by what, and the encoder, in words."""
    match settings:
        case DenseRetrievalSettings() | HybridRetrievalSettings():
            return settings.corpus, f"{settings.kind}, {settings.index.kind}", _encoder(settings.encoder)
        case BM25RetrievalSettings():
            return settings.corpus, settings.kind, ""
        case HttpRetrievalSettings():
            return "a server", settings.kind, ""  # Not its address: results do not depend on it.
        case PluginRetrievalSettings():
            return settings.kind, "plugin", ""
        case unknown:
            assert_never(unknown)


def _encoder(settings: LexicalEncoderSettings | HFEncoderSettings) -> str:
    return settings.path if isinstance(settings, HFEncoderSettings) else settings.kind


def _protocol(rollout: RolloutSettings) -> str:
    """The wording of 'tags' does not name it: templates are older than protocols."""
    return f"tags {rollout.wording}" if rollout.protocol == "tags" else rollout.wording


def _limits(rollout: RolloutSettings) -> str:
    return (
        f"{rollout.max_searches} searches; at most {rollout.max_new_tokens} tokens a turn, "
        f"{rollout.max_observation_tokens} a reply, {rollout.max_prompt_tokens} a prompt"
    )


def _decoding(settings: Settings, mode: EvaluationMode) -> str:
    """Greedy answers depend on no seed; the type of the weights and the sampler decide near ties."""
    how = mode if mode == "greedy" else f"sampled at {settings.rollout.temperature:g}, seed {settings.evaluation.seed}"
    return f"{how}, {settings.sampling.kind}, {settings.model.dtype}"
