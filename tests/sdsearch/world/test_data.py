from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations
from typing import Any, get_args

import pytest

from schemas.records.question import Question
from schemas.settings.data import WORLD
from sdsearch.credit.scoring import contains_answer, normalise_answer
from sdsearch.retrieval.dense import build_dense_retriever
from sdsearch.retrieval.lexical import LexicalEncoder
from sdsearch.world import Split, corpus_file, load_passages, load_questions
from sdsearch.world.clean import clean_passages, clean_questions, clean_text

SPLITS: tuple[Split, ...] = get_args(Split)
PASSAGES = {passage.id: passage for passage in load_passages()}
QUESTIONS = {split: load_questions(split) for split in SPLITS}


def evidence(split: Split) -> dict[str, list[list[str]]]:
    """The passages that answer each hop, by question id."""
    lines = (files("sdsearch.world") / "data" / f"questions_{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["metadata"]["split"] == split for row in rows)
    return {row["id"]: row["metadata"]["evidence"] for row in rows}


def test_the_world_has_its_rows() -> None:
    assert len(PASSAGES) == 4879
    assert {split: len(questions) for split, questions in QUESTIONS.items()} == {
        "train": 4673, "dev": 1447, "test": 1449,
    }  # fmt: skip
    everything = [question for questions in QUESTIONS.values() for question in questions]
    assert len({question.id for question in everything}) == len(everything)
    assert len({question.question for question in everything}) == len(everything)
    assert {question.dataset for question in everything} == {WORLD}
    assert Counter(question.category for question in everything)["bridge-city"] > 1500
    assert corpus_file().is_file()
    with pytest.raises(ValueError, match="no split 'validation'; choose one of train, dev, test"):
        load_questions("validation")


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_stands_in_its_evidence(split: Split) -> None:
    gold = evidence(split)
    for question in QUESTIONS[split]:
        hops = [[PASSAGES[number] for number in hop] for hop in gold[question.id]]
        assert hops, question
        assert all(hops), question
        if question.category == "comparison":
            assert any(contains_answer(passage, question.golden_answers) for hop in hops for passage in hop)
        else:
            assert all(contains_answer(passage, question.golden_answers) for passage in hops[-1]), question


def test_splits_share_no_passage_of_evidence() -> None:
    used = {split: {number for hops in evidence(split).values() for hop in hops for number in hop} for split in SPLITS}
    assert all(len(passages) > 500 for passages in used.values())
    for one, other in combinations(SPLITS, 2):
        assert not used[one] & used[other]


def answers_itself(question: Question) -> bool:
    words = f" {normalise_answer(question.question)} "
    return any(f" {normalise_answer(answer)} " in words for answer in question.golden_answers)


def test_no_question_but_a_comparison_answers_itself() -> None:
    for questions in QUESTIONS.values():
        for question in questions:
            assert answers_itself(question) == (question.category == "comparison"), question


def test_no_passage_has_an_empty_slot_or_an_odd_bracket() -> None:
    for passage in PASSAGES.values():
        assert not re.search(r"  |\.\.|\{|\}|[ (][,;)]| is \.$| in and ", passage.text), passage
        assert passage.text.count("(") == passage.text.count(")"), passage
        assert passage.text.isascii()
        assert passage.title


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ("Main industries are fish, tuna), mining.", "Main industries are fish, tuna, mining."),
        ("Oil (crude), gas (LNG).", "Oil (crude), gas (LNG)."),
        ("France is a country. It lies in  and has 5.", "France is a country. It has 5."),
        ("{France} is a country. It lies in  and has {#5}.", "{France} is a country. It has {#5}."),
        ("The code is +377 and its internet domain is .", "The code is +377."),
        ("The code is {#+377} and its internet domain is {}.", "The code is {#+377}."),
        ("The code is +51 and its internet domain is .pe.", "The code is +51 and its internet domain is .pe."),
        ("It lies in Africa, between Egypt and has 5.", "It lies in Africa and has 5."),
        ("It lies in Africa, between {Egypt}. Five.", "It lies in Africa. Five."),
        ("It lies between Peru, between Egypt and Sudan.", "It lies between Peru, between Egypt and Sudan."),
        ("The official language of Somalia is Somalia. It is dry.", "It is dry."),
        ("The official language of {Somalia} is {Somalia}. It is dry.", "It is dry."),
        ("Exports include coffee, apparel, coffee.", "Exports include coffee, apparel."),
        ("Exports oil 90%, 2012 est.). More.", "Exports oil 90%, 2012 est. More."),
    ],
)
def test_texts_are_repaired_with_or_without_marks(broken: str, repaired: str) -> None:
    assert clean_text(broken)[0] == repaired
    assert bool(clean_text(broken)[1]) == (broken != repaired)
    assert clean_text(repaired) == (repaired, [])


def test_repairs_are_counted_and_no_passage_is_lost() -> None:
    rows = [{"id": "1", "contents": '"A"\nfish, tuna).'}, {"id": "2", "contents": '"B"\nfine.'}]
    cleaned, repairs = clean_passages(rows)
    assert [row["id"] for row in cleaned] == ["1", "2"]
    assert repairs == Counter({"bracket never opened": 1})


def raw_question(question: str, answer: str, category: str = "1hop-country") -> dict[str, Any]:
    return {
        "id": "q1", "question": question, "golden_answers": [answer], "hops": 1, "type": category, "split": "dev",
        "evidence": [["4"]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("What is the national symbol of Italy?", "white", "answer broken in the source"),
        ("Which is the national anthem of Kosovo?", "Europe", "answer broken in the source"),
        ("What is the independence year of Sweden?", "1523", "independence of an old state"),
        ("What is the capital of the country whose national anthem is Europe?", "X", "bridge is an everyday word"),
        ("What is the capital of Djibouti?", "Djibouti", "answer stands in the question"),
    ],
)
def test_untrustworthy_questions_are_left_out(question: str, answer: str, reason: str) -> None:
    kept, left_out = clean_questions([raw_question(question, answer)])
    assert not kept
    assert left_out == Counter({reason: 1})


def test_sound_questions_are_kept_in_public_columns() -> None:
    rows = [
        raw_question("What is the continent of Peru?", "Europe"),
        raw_question("What is the independence year of Peru?", "1821"),
        raw_question("Which country has the larger population, Peru or Chile?", "Peru", "comparison"),
    ]
    kept, left_out = clean_questions(rows)
    assert not left_out
    metadata = {"category": "1hop-country", "split": "dev", "evidence": [["4"]]}
    assert kept[0] == {
        "id": "q1", "question": "What is the continent of Peru?", "golden_answers": ["Europe"], "metadata": metadata,
    }  # fmt: skip
    assert len(kept) == 3


def test_the_default_encoder_finds_the_evidence_of_one_hop_questions() -> None:
    passages = list(PASSAGES.values())
    retriever = build_dense_retriever(passages, LexicalEncoder.fit([passage.contents for passage in passages]))
    asked = [question for question in QUESTIONS["dev"] if question.category.startswith("1hop")]
    gold = evidence("dev")
    found = retriever.search([question.question for question in asked], 3)
    hits = [
        any(hit.passage.id in gold[question.id][0] for hit in hits) for question, hits in zip(asked, found, strict=True)
    ]
    assert sum(hits) / len(hits) >= 0.9
