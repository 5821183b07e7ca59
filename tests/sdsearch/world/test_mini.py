"""The mini policy's making: tokenizer, wiring, demonstrations, training loop, and the shipped folder."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from schemas.records.passage import Passage, SearchHit
from schemas.records.rollout import Answer, Search
from sdsearch.protocol.parsing import parse_action
from sdsearch.protocol.prompting import render_documents, render_frame, render_prompt
from sdsearch.protocol.tokens import decode, encode_foreign
from sdsearch.training.supervised import Demonstration, bucket, learning_rate_at, weighted_loss
from sdsearch.world import build
from sdsearch.world.architecture import make_mini_model
from sdsearch.world.demonstrations import (
    MAX_OBSERVATION_TOKENS,
    Scene,
    Stage,
    encode_scene,
    make_scene,
    mini_layout,
)
from sdsearch.world.markup import Hop, MarkedPassage, MarkedWorld, NameSource, QuestionPlan, Renaming, slots, unmark
from sdsearch.world.pretrain import pretrain
from sdsearch.world.probe import Estimate
from sdsearch.world.scripts import QueryBook, Script, ScriptedTurn, label_script, write_script
from sdsearch.world.tokenizer import PAD, TAG_TOKENS, train_tokenizer

_PLACES = ("Arda", "Belmor", "Caldin", "Dorwen", "Esgal")


def _passages() -> dict[str, MarkedPassage]:
    found = {}
    for number, place in enumerate(_PLACES):
        found[f"g{number}"] = MarkedPassage(
            f"Government of {{{place}}}", f"The capital of {{{place}}} is {{{place}ton}}."
        )
        found[f"e{number}"] = MarkedPassage(
            f"Economy of {{{place}}}", f"The currency of {{{place}}} is {{{place}mark}}."
        )
        found[f"t{number}"] = MarkedPassage(f"{{{place}ton}}", f"{{{place}ton}} has {{#12,345}} people.")
    return found


def _plans() -> list[QuestionPlan]:
    plans = []
    for number, place in enumerate(_PLACES):
        capital = Hop(
            f"{{{place}ton}}",
            "capital",
            f"{{{place}}}",
            frozenset({f"g{number}"}),
            f"the country whose capital is {{{place}ton}}",
        )
        currency = Hop(f"{{{place}}}", "currency", f"{{{place}mark}}", frozenset({f"e{number}"}), None)
        question = f"What is the currency of {capital.bridge}?"
        plans.append(
            QuestionPlan(f"b{number}", question, (currency.object,), "bridge-capital", "train", (capital, currency))
        )
        question = f"What is the currency of {{{place}}}?"
        plans.append(QuestionPlan(f"q{number}", question, (currency.object,), "1hop-country", "train", (currency,)))
    return plans


class _WordRetriever:
    """Ranks passages by the words they share with the query."""

    def __init__(self, world: MarkedWorld) -> None:
        self._passages = [Passage(id=k, title=unmark(p.title), text=unmark(p.text)) for k, p in world.passages.items()]

    def search(self, queries: Sequence[str], top_k: int) -> list[tuple[SearchHit, ...]]:
        return [self._search(set(re.findall(r"\w+", query.lower())), top_k) for query in queries]

    def _search(self, words: set[str], top_k: int) -> tuple[SearchHit, ...]:
        shared = [len(words & set(re.findall(r"\w+", passage.contents.lower()))) for passage in self._passages]
        order = sorted(range(len(shared)), key=lambda i: (-shared[i], i))[:top_k]
        return tuple(SearchHit(passage=self._passages[i], score=float(shared[i])) for i in order if shared[i])


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    texts = [unmark(p.title + " " + p.text) for p in _passages().values()] + [unmark(p.question) for p in _plans()]
    block = "Attempt 1 (CORRECT): currency of Arda | x\nAttempt 2 (INCORRECT): no search\n"
    return train_tokenizer([*texts, *[block] * 9], vocabulary_size=420)


@cache
def _stage() -> Stage:
    world = MarkedWorld(_passages(), tuple(_plans()))
    book = QueryBook(world, world.plans, _WordRetriever(world), Random(0))
    return Stage(world, book, mini_layout(_tokenizer()), NameSource(_tokenizer(), world))


def _scenes(kind: str, num: int = 60) -> list[Scene]:
    stage, random = _stage(), Random(1)
    return [make_scene(stage, random.choice(stage.world.plans), kind, random) for _ in range(num)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models only wait for each other's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokenizer_loses_nothing(text: str) -> None:
    assert decode(_tokenizer(), encode_foreign(_tokenizer(), text.replace("<", "("))) == text.replace("<", "(")


def test_tokenizer_tags_and_digits_are_single_tokens() -> None:
    tokenizer = _tokenizer()
    for tag in TAG_TOKENS:
        assert tokenizer.encode(tag, add_special_tokens=False) == [tokenizer.convert_tokens_to_ids(tag)]
        assert tokenizer.convert_tokens_to_ids(tag) in tokenizer.all_special_ids
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2048", add_special_tokens=False)] == list("2048")
    assert tokenizer.pad_token == PAD
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token_id is None
    assert tokenizer.chat_template is None


def test_fresh_weights_copy_what_followed_a_token_before() -> None:
    model = make_mini_model(512, 0, 1, seed=3).eval()
    run_BT = torch.randint(2, 512, (8, 40), generator=torch.Generator().manual_seed(0))
    ids_BT = torch.cat([run_BT, run_BT], dim=1)
    with torch.no_grad():
        guessed_BT = model(input_ids=ids_BT).logits.argmax(-1)
    copied = (guessed_BT[:, 41:-1] == ids_BT[:, 42:]).float().mean()
    first_time = (guessed_BT[:, 1:38] == ids_BT[:, 2:39]).float().mean()
    assert copied > 0.3, "chance is 1/510"
    assert first_time < 0.05


def test_renaming_is_consistent_and_keeps_the_shape_of_numbers() -> None:
    renaming = Renaming(Random(5), _stage().names)
    new = renaming.apply("{Arda} borders {Belmor}; {Arda} has {#12,345} people, domain {.ar}")
    match = re.fullmatch(r"(.+) borders (.+); (.+) has (\d\d,\d\d\d) people, domain (\.[a-z]{2})", new)
    assert match is not None
    assert match.group(1) == match.group(3)
    assert "Arda" not in (match.group(1), match.group(2)) or match.group(1) == "Arda"
    assert Renaming(Random(5), None).apply("{Arda} {#7}") == "Arda 7"


def test_renaming_a_corpus_never_gives_two_things_one_name() -> None:
    renaming = Renaming(Random(5), _stage().names, invented=True)
    names = [renaming.apply(f"{{thing {number}}}") for number in range(400)]
    assert len(set(names)) == 400


def test_scripts_say_truly_what_was_found() -> None:
    stage, random = _stage(), Random(2)
    scripts = [(plan, write_script(stage.book, plan, random, 4)) for plan in stage.world.plans for _ in range(20)]
    labels = {label_script(script, plan) for plan, script in scripts}
    assert labels == {"CORRECT", "INCORRECT"}
    for plan, script in scripts:
        assert 1 <= len(script.turns) <= 4
        for turn in script.turns:
            assert turn.found == any(turn.hits and hop.gold & set(turn.hits) for hop in _hop_of(plan, script, turn))
        read = {hit for turn in script.turns for hit in turn.hits}
        if script.answer == plan.golden_answers[0] and all(turn.found for turn in script.turns[-1:]):
            assert read & plan.hops[-1].gold


def _hop_of(plan: QuestionPlan, script: Script, turn: ScriptedTurn) -> list[Hop]:
    """The hop a turn was after: the first whose evidence no earlier turn was credited with."""
    num_found = sum(earlier.found for earlier in script.turns[: script.turns.index(turn)])
    return [plan.hops[min(num_found, len(plan.hops) - 1)]]


def test_a_book_of_one_passage_calls_good_what_brings_the_evidence_first() -> None:
    world = MarkedWorld(_passages(), tuple(_plans()))
    book = QueryBook(world, world.plans, _WordRetriever(world), Random(0), num_passages=1)
    more = _stage().book
    pairs = [(plan, place) for plan in world.plans for place in range(len(plan.hops))]
    for plan, place in pairs:
        gold, queries = plan.hops[place].gold, book.at(plan, place)
        assert all(len(candidate.hits) <= 1 for candidate in queries.all)
        assert all(set(candidate.hits) <= gold and candidate.hits for candidate in queries.good)
        assert not any(set(candidate.hits) & gold for candidate in queries.bad)
        assert {c.query for c in queries.good} <= {c.query for c in more.at(plan, place).good}


def test_a_policy_trained_to_read_is_the_same_twice_and_another(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _stage()
    train_plans = tuple(plan._replace(split="train") for plan in stage.world.plans)
    world = MarkedWorld(stage.world.passages, train_plans)
    monkeypatch.setattr(build, "load_marked_world", lambda: world)
    monkeypatch.setattr(build, "make_retriever", lambda passages: _WordRetriever(world))
    asked: list[int] = []
    real = build.QueryBook
    monkeypatch.setattr(build, "QueryBook", lambda *given: (asked.append(given[-1]), real(*given))[1])

    def trained() -> tuple[list[float], torch.Tensor]:
        model = make_mini_model(len(_tokenizer()), _tokenizer().pad_token_id, _tokenizer().eos_token_id, 3)
        said: list[build.BuildProgress] = []
        build.train_reader(model, _tokenizer(), 0, said.append, num_steps=3)
        return [p.loss for p in said if p.loss is not None], model.lm_head.weight.detach().clone()

    (losses, weights), (again, other) = trained(), trained()
    assert losses == again
    assert len(losses) == 3
    assert torch.equal(weights, other)
    fresh = make_mini_model(len(_tokenizer()), _tokenizer().pad_token_id, _tokenizer().eos_token_id, 3).lm_head.weight
    assert not torch.equal(weights, fresh)
    assert asked == [1, 3, 1, 3]


def test_critical_targets_repeat_a_correct_attempt_and_never_an_incorrect_one() -> None:
    scenes = _scenes("critical") + _scenes("opening")
    for scene in scenes:
        assert scene.attempts is not None
        first = scene.script.queries[0]
        by_label = {
            label: {queries[0] for queries, found in scene.attempts if found == label}
            for label in ("CORRECT", "INCORRECT")
        }
        assert first in by_label["CORRECT"]
        assert first not in by_label["INCORRECT"]
        assert any(queries[: len(scene.script.queries)] == scene.script.queries for queries, _ in scene.attempts)


def test_natural_targets_follow_the_outcomes() -> None:
    kinds = set()
    for scene in _scenes("natural", 150):
        assert scene.attempts is not None
        correct = {query for queries, label in scene.attempts if label == "CORRECT" for query in queries}
        tried = {query for queries, _ in scene.attempts for query in queries}
        has_correct = any(label == "CORRECT" for _, label in scene.attempts)
        kinds.add(has_correct)
        if has_correct:
            assert set(scene.script.queries) <= correct
        else:
            good = {c.query for p in range(len(scene.plan.hops)) for c in _stage().book.at(scene.plan, p).good}
            assert not set(scene.script.queries) & tried or not good - tried
    assert kinds == {True, False}


def test_demonstrations_have_the_layout_of_rollouts() -> None:
    stage, tokenizer = _stage(), _tokenizer()
    for scene in _scenes("plain", 20):
        demonstration = encode_scene(stage, scene, Renaming(Random(0), None), Random(0))
        prompt = render_prompt(tokenizer, unmark(scene.plan.question), render_frame(tokenizer, "compact")).token_ids
        assert demonstration.token_ids[: len(prompt)] == prompt
        texts = [decode(tokenizer, span) for span in _policy_spans(demonstration)]
        actions = [parse_action(text) for text in texts]
        assert actions[:-1] == [Search(query=unmark(turn.query)) for turn in scene.script.turns]
        assert actions[-1] == Answer(answer=unmark(scene.script.answer))
        expected = list(prompt)
        for text, turn in zip(texts, scene.script.turns, strict=False):
            expected += tokenizer.encode(text, add_special_tokens=False)
            hits = [
                SearchHit(passage=Passage(id=h, title=unmark(p.title), text=unmark(p.text)), score=1.0)
                for h, p in ((h, stage.world.passages[h]) for h in turn.hits)
            ]
            expected += render_documents(tokenizer, hits, MAX_OBSERVATION_TOKENS).token_ids
        assert list(demonstration.token_ids[: len(expected)]) == expected


def _policy_spans(demonstration: Demonstration) -> list[list[int]]:
    spans: list[list[int]] = []
    is_open = False
    for token, weight in zip(*demonstration, strict=True):
        if weight == 1.0 and not is_open:
            spans.append([])
        is_open = weight == 1.0
        if is_open:
            spans[-1].append(token)
    return spans


def test_blocks_come_before_an_unchanged_prompt() -> None:
    stage, tokenizer = _stage(), _tokenizer()
    scene = _scenes("natural", 1)[0]
    demonstration = encode_scene(stage, scene, Renaming(Random(0), None), Random(0))
    without = encode_scene(stage, scene._replace(attempts=None), Renaming(Random(0), None), Random(0))
    assert demonstration.token_ids[-len(without.token_ids) :] == without.token_ids
    block = decode(tokenizer, demonstration.token_ids[: -len(without.token_ids)])
    assert block.startswith("Earlier attempts at this question.")
    assert scene.attempts is not None
    assert f"Attempt 1 ({scene.attempts[0][1]}): {unmark(scene.attempts[0][0][0])}" in block


def test_padded_loss_is_the_weighted_mean_over_single_sequences() -> None:
    model = make_mini_model(420, 0, 1, seed=0).eval()
    rows = [Demonstration((5, 6, 7, 8, 9, 10), (0, 0, 1.0, 0.5, 0, 1.0)), Demonstration((11, 12, 13), (0, 0.5, 1.0))]
    (batch,) = bucket(rows, 100, Random(0))
    total, weight = 0.0, 0.0
    for row in rows:
        logits_TV = model(input_ids=torch.tensor([row.token_ids])).logits[0].detach()
        losses_T = functional.cross_entropy(logits_TV[:-1], torch.tensor(row.token_ids[1:]), reduction="none")
        total += float((losses_T * torch.tensor(row.weights[1:])).sum())
        weight += sum(row.weights[1:])
    assert weighted_loss(model, batch).item() == pytest.approx(total / weight, rel=1e-5)


def test_bucketing_keeps_every_demonstration_once_and_the_size_of_batches() -> None:
    rows = [Demonstration((number,) * length, (1.0,) * length) for number, length in enumerate((9, 3, 7, 2, 8, 4), 2)]
    batches = bucket(rows, 16, Random(0))
    assert all(batch.ids_BT.numel() <= 16 for batch in batches)
    assert sorted(int(row[0]) for batch in batches for row in batch.ids_BT) == list(range(2, 8))


def test_training_learns_and_repeats_itself_exactly() -> None:
    stage = _stage()
    rows = [encode_scene(stage, scene, Renaming(Random(0), None), Random(0)) for scene in _scenes("query_only", 8)]

    def train() -> tuple[list[float], torch.Tensor]:
        model = make_mini_model(len(_tokenizer()), 0, 1, seed=0)
        batches = bucket(rows, 4000, Random(0)) * 12
        losses = [report.loss for report in pretrain(model, batches, 12, 2e-3)]
        return losses, model.model.embed_tokens.weight.detach().clone()

    (losses, weights), (again, weights_again) = train(), train()
    assert losses[-1] < losses[0] - 0.5
    assert losses == again
    assert torch.equal(weights, weights_again)


def test_learning_rate_warms_up_stays_and_falls() -> None:
    rates = [learning_rate_at(step, 1000, 1.0) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100:500] == [1.0] * 400
    assert all(later <= earlier for earlier, later in pairwise(rates[500:]))
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)


def test_estimate_has_the_standard_error_of_the_mean() -> None:
    values = [0.2, 0.4, 1.0, 0.0]
    estimate = Estimate.of(values)
    assert estimate.mean == pytest.approx(statistics.mean(values))
    assert estimate.standard_error == pytest.approx(statistics.stdev(values) / 2)
    assert estimate.num == 4


def test_marks_are_found_and_removed() -> None:
    assert slots("{Arda} has {#3} towns") == ["{Arda}", "{#3}"]
    assert unmark("{Arda} has {#3} towns") == "Arda has 3 towns"


def test_shipped_folder_is_small_and_opens() -> None:
    from sdsearch.model.policy import load_model, load_tokenizer

    folder = files("sdsearch.world") / "mini"
    assert sum(len(item.read_bytes()) for item in folder.iterdir()) <= 12_000_000
    tokenizer, model = load_tokenizer(str(folder)), load_model(str(folder), "float32")
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert tokenizer.chat_template is None
    assert tokenizer.bos_token_id is None
