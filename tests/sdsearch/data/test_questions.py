"""Questions in every public form, and what of them cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.data.prepare import load_all
from flows.data.questions import Questions
from flows.settings.load import load_settings
from schemas.errors import UserError
from schemas.settings.data import DataSettings, SetName
from sdsearch.data.questions import ReadingRules, collect, questions_hash, rows_at
from sdsearch.data.readers import DataError
from sdsearch.world import load_questions
from tests.support.question_files import flashrag_rows, hub_folder, search_r1_rows, world_questions, write_rows

QUESTIONS = world_questions("train", 6)
NQ = SetName("nq", "train")
RULES = ReadingRules(question_mark=True)


def read(location: object, name: SetName = NQ, rules: ReadingRules = RULES) -> list[tuple[str, ...]]:
    questions = collect(rows_at(str(location), name), str(location), name, rules).questions
    return [(question.key, question.split, question.question, *question.golden_answers) for question in questions]


def expected(dataset: str = "nq") -> list[tuple[str, ...]]:
    return [(f"{dataset}:{q.id}", "train", q.question, *q.golden_answers) for q in QUESTIONS]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.parquet"])
@pytest.mark.parametrize("form", ["flashrag", "search_r1"])
def test_every_form_gives_the_same_questions(name: str, form: str, tmp_path: Path) -> None:
    rows = flashrag_rows(QUESTIONS) if form == "flashrag" else search_r1_rows(QUESTIONS, "nq")
    write_rows(tmp_path / "nq" / name, rows)
    assert read(tmp_path / "{dataset}" / name.replace("train", "{split}")) == expected()


def test_a_data_set_of_the_hub_is_opened_by_its_configuration(tmp_path: Path) -> None:
    files = {"nq": {"train": flashrag_rows(QUESTIONS)}, "popqa": {"test": flashrag_rows(QUESTIONS[:1])}}
    location = f"hub:{hub_folder(tmp_path / 'hub', files)}"
    assert read(location) == expected()
    hub_folder(tmp_path / "hub", files | {"nq": {"train": flashrag_rows(QUESTIONS[:2])}})
    assert read(location) == expected()[:2], "a folder that has changed is read again"
    with pytest.raises(DataError, match="no data set 'popqq' in it; did you mean 'popqa'"):
        read(location, SetName("popqq", "test"))
    with pytest.raises(DataError, match="popqa:dev cannot be loaded"):
        read(location, SetName("popqa", "dev"))
    with pytest.raises(DataError, match=r"cannot be loaded .*check the name, the split and the connection"):
        read(f"hub:{tmp_path}/nothing")


def test_a_broken_row_of_a_hub_folder_is_named(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", {"nq": {"train": flashrag_rows(QUESTIONS)}})
    (folder / "nq" / "train.jsonl").write_text('{"id": ', encoding="utf-8")
    with pytest.raises(DataError, match=r"nq:train cannot be loaded \(.*check the name"):
        read(f"hub:{folder}")


def test_a_data_set_of_the_hub_without_configurations_is_told_apart_by_its_rows(tmp_path: Path) -> None:
    rows = [*search_r1_rows(QUESTIONS, "nq"), *search_r1_rows(QUESTIONS[:1], "hotpotqa")]
    write_rows(tmp_path / "train.parquet", rows)
    assert read(f"hub:{tmp_path}") == expected()
    assert len(read(f"hub:{tmp_path}", SetName("hotpotqa", "train"))) == 1


def test_a_file_of_several_data_sets_gives_the_rows_of_the_one_that_is_named(tmp_path: Path) -> None:
    """Search-R1's merged files: running numbers begin anew with each data set, so ids alone collide."""
    rows = [*search_r1_rows(QUESTIONS, "nq"), *search_r1_rows(QUESTIONS[::-1], "searchR1_hotpotqa")]
    path = write_rows(tmp_path / "train.parquet", rows)
    assert read(path) == expected("nq")
    assert sorted(read(path, SetName("hotpotqa", "train"))) == sorted(expected("hotpotqa"))
    mix = Questions(DataSettings(questions=str(path), train=("nq", "hotpotqa"))).training
    assert len({question.key for question in mix}) == 2 * len(QUESTIONS)
    with pytest.raises(DataError, match=r"no data set 'hotpot' .*has hotpotqa, nq: did you mean 'hotpotqa'"):
        read(path, SetName("hotpot", "train"))


SEARCH_R1_ROW: dict[str, Any] = dict(search_r1_rows(QUESTIONS[:1], "nq")[0])


@pytest.mark.parametrize(
    ("change", "question", "answers"),
    [
        ({"prompt": [{"role": "user", "content": "Question: who? <|im_end|>\n<|im_start|>assistant"}]}, "who?", None),
        ({"prompt": [{"content": "Be kind."}, {"content": "Question: What does 'Question: x' mean"}]}, None, None),
        ({"prompt": [{"content": "<s>[INST] Question: who? [/INST]"}]}, "who?", None),
        ({"prompt": [{"content": "Question: who?<end_of_turn>\n<start_of_turn>model\n"}]}, "who?", None),
        ({"prompt": [{"content": "Question: who?\n \n"}]}, "who?", None),
        ({"extra_info": {"index": 0, "question": " who wrote it "}}, "who wrote it?", None),
        ({"question": "who?"}, "who?", None),
        ({"reward_model": {"ground_truth": {"target": "Lima"}}}, None, ("Lima",)),
        ({"reward_model": {"ground_truth": "Lima"}}, None, ("Lima",)),
    ],
    ids=["ChatML", "twice", "Llama 2", "Gemma", "blanks", "extra_info", "column", "one answer", "no target"],
)
def test_what_search_r1_files_may_look_like(
    change: Mapping[str, Any], question: str | None, answers: tuple[str, ...] | None, tmp_path: Path
) -> None:
    ((key, _, asked, *golden),) = read(write_rows(tmp_path / "x.jsonl", [{**SEARCH_R1_ROW, **change}]))
    assert key == "nq:train_0"
    default = "What does 'Question: x' mean?" if "prompt" in change else QUESTIONS[0].question
    assert asked == (question or default)
    assert tuple(golden) == (answers or QUESTIONS[0].golden_answers)


@pytest.mark.parametrize("tail", ["Think step by step.", "Answer: ", "\n\nBe brief.", "Answer: x\nQuestion: why?"])
def test_what_follows_a_question_in_its_prompt_is_no_part_of_it(tail: str, tmp_path: Path) -> None:
    row = {**SEARCH_R1_ROW, "prompt": [{"role": "user", "content": f"Question: who?\n{tail}"}]}
    location = str(write_rows(tmp_path / "x.jsonl", [row, search_r1_rows(QUESTIONS[1:2], "nq")[0]]))
    with pytest.raises(
        DataError, match=r"line 1: 'prompt' continues after the line with 'Question:' .* give the question"
    ):
        collect(rows_at(location, NQ), location, NQ, ReadingRules(True))
    loaded = collect(rows_at(location, NQ), location, NQ, ReadingRules(True, 0.5))
    assert [question.question for question in loaded.questions] == [QUESTIONS[1].question]
    assert [group.reason for group in loaded.report.dropped] == ["text after the question"]


def test_questions_end_with_a_question_mark_unless_told_otherwise(tmp_path: Path) -> None:
    row = {"id": 1, "question": " name the capital of Peru ", "golden_answers": ["Lima"]}
    path = write_rows(tmp_path / "x.jsonl", [row])
    assert read(path)[0][2] == "name the capital of Peru?"
    assert read(path, rules=ReadingRules(False))[0][2] == " name the capital of Peru "


BAD_ROWS: list[dict[str, Any]] = [
    {"id": "b1", "question": "Who?", "golden_answers": []},
    {"id": "b2", "question": "Who?", "golden_answers": [""]},
    {"id": "train_0", "question": "Who?", "golden_answers": ["x"]},
    {"id": "b3", "question": " ", "golden_answers": ["x"]},
    {"id": None, "question": "Who?", "golden_answers": ["x"]},
]


def test_bad_rows_are_left_out_and_counted_up_to_the_limit(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [*flashrag_rows(QUESTIONS), *BAD_ROWS])
    path.write_bytes(path.read_bytes() + b"[1]\n")
    loaded = collect(rows_at(str(path), NQ), str(path), NQ, ReadingRules(True, 0.5))
    assert [question.id for question in loaded.questions] == [question.id for question in QUESTIONS]
    report = loaded.report
    assert (report.num_rows, report.num_kept, report.num_dropped) == (12, 6, 6)
    counts = {group.reason: group.num_rows for group in report.dropped}
    assert counts == {"no answers": 2, "id twice": 1, "no question": 1, "no id": 1, "no JSON object": 1}
    assert f"{path}, line 7: 'golden_answers' is []" in report.dropped[0].example
    with pytest.raises(DataError, match=r"line 7: .*6 of 12 rows of nq:train .*2 with no answers.*max_dropped_share"):
        collect(rows_at(str(path), NQ), str(path), NQ, ReadingRules(True, 0.4))
    with pytest.raises(DataError, match=r"line 7: 'golden_answers' is \[\].*or give its answers$"):
        collect(rows_at(str(path), NQ), str(path), NQ, ReadingRules(True))


def test_the_hash_is_of_what_the_questions_are() -> None:
    changes: list[dict[str, Any]] = [{"id": "x"}, {"question": "x?"}, {"golden_answers": ("x",)}, {"category": "x"}]
    others = [[QUESTIONS[0].model_copy(update=change), *QUESTIONS[1:]] for change in changes]
    hashes = [questions_hash(questions) for questions in (QUESTIONS, QUESTIONS[::-1], *others)]
    assert len(set(hashes)) == 6
    assert questions_hash([question.model_copy(update={"dataset": "other"}) for question in QUESTIONS]) == hashes[0]


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    rows = flashrag_rows(world_questions("train", 300))
    packed = write_rows(tmp_path / "x.jsonl.gz", rows)
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"x\.jsonl\.gz: cannot be unpacked after line \d+ .*cut off or damaged"):
        read(packed)
    packed.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="cannot be unpacked after line 0"):
        read(packed)
    parquet = write_rows(tmp_path / "x.parquet", rows)
    parquet.write_bytes(parquet.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"x\.parquet: not a parquet file"):
        read(parquet)
    foreign = write_rows(tmp_path / "y.parquet", [{"query": "Who?", "answer": "x"}])
    with pytest.raises(DataError, match=r"columns are query, answer; expected FlashRAG's id, question, golden_answers"):
        read(foreign)
    with pytest.raises(DataError, match="there are no questions of nq:train"):
        read(write_rows(tmp_path / "empty.jsonl", []))


def test_a_mix_holds_every_set_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "nq" / "train.jsonl", flashrag_rows(QUESTIONS))
    other = write_rows(tmp_path / "other.parquet", flashrag_rows(world_questions("train", 6, start=6)))
    settings = DataSettings(questions=f"{tmp_path}/{{dataset}}/{{split}}.jsonl", train=("nq", "hotpotqa", "world:dev"))
    settings = settings.model_copy(update={"sets": {"hotpotqa": str(other), "world": "world"}})
    mix = Questions(settings).training
    assert len(mix) == 12 + len(load_questions("dev"))
    assert {question.dataset for question in mix} == {"nq", "hotpotqa", "world"}
    same = settings.model_copy(
        update={"sets": {"hotpotqa": f"{tmp_path}/nq/{{split}}.jsonl"}, "train": ("nq", "hotpotqa")}
    )
    with pytest.raises(DataError, match="nq:train and hotpotqa:train are the same questions"):
        _ = Questions(same).training
    write_rows(tmp_path / "nq" / "dev.jsonl", flashrag_rows(QUESTIONS[1:]))
    with pytest.raises(DataError, match="5 question ids are in two splits of the same data set"):
        _ = Questions(settings.model_copy(update={"train": ("nq:train", "nq:dev")})).training


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(source: str, dataset: str, **options: object) -> None:
        asked.append(dataset)
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(UserError, match=r"^hub:RUC-NLPIR/FlashRAG_datasets: nq:train cannot be loaded \(no route.*$"):
        load_all(load_settings("paper_3b"))
    assert asked == ["nq"]


def test_settings_of_before_mean_what_they_meant() -> None:
    questions = Questions(load_settings("tiny").data)
    assert questions.training == load_questions("train")
    assert questions.of(SetName("world", "dev")) == load_questions("dev")
    with pytest.raises(UserError, match="no data set 'nq': the embedded one is called 'world'"):
        _ = Questions(DataSettings(train=("nq",))).training


@pytest.mark.parametrize("text", ["", "a:", "a b", "../x", "a:b:c", "nq:../x"])
def test_names_of_data_sets_are_names(text: str) -> None:
    with pytest.raises(UserError, match=r"data\.train: .*is no 'name' or 'name:split' of a data set"):
        load_settings("tiny", [f"data.train=['{text}']"])
