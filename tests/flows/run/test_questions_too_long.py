"""Every question is measured before a run begins: what makes too long a prompt is refused, or left out and counted."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from flows.app import run_command
from flows.run.model_files import model_folder
from flows.run.prompts import longest_prompt
from schemas.records.ledger import StageKey
from schemas.settings.root import RolloutSettings
from sdsearch.model.policy import load_tokenizer
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage
from storage.workspace import Workspace
from tests.support.question_files import DatasetRows, flashrag_rows, world_questions, write_rows

pytestmark = pytest.mark.long

TOKENIZER = load_tokenizer(model_folder("mini"))
LONG = {"id": "long", "question": "why " * 300 + "?", "golden_answers": ["x"]}
NUM_LONG = sum(len(TOKENIZER.encode(part, add_special_tokens=False)) for part in ("Question: ", LONG["question"], "\n"))
SMALL = ["model.torch_threads=1", "rollout.group_size=2", "rollout.max_searches=1", "rollout.max_new_tokens=4"]
SMALL += ["iterations=1", "data.questions_per_iteration=2", "evaluation.num_questions=1", "data.dataset=own"]
COMMANDS = {
    "train": ["train", "tiny", "--no-prefect", "--run", "run"],
    "doctor": ["doctor", "tiny"],
    "prepare": ["data", "prepare", "tiny"],
    "evaluate": ["evaluate", "--config", "tiny", "--split", "train"],
}


class Asked:
    """Commands about the questions of a folder, in a workspace of their own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = folder
        self._capsys = capsys
        self.workspace = folder / "workspace"
        self.write("dev", flashrag_rows(world_questions("dev", 1)))
        write_rows(folder / "corpus.jsonl", [{"id": "1", "contents": '"A"\ntext'}])

    def write(self, split: str, rows: DatasetRows) -> None:
        write_rows(self._folder / f"{split}.jsonl", rows)

    def run(self, command: str, *overrides: str) -> tuple[int, str, str]:
        sets = [*SMALL, f"data.questions={self._folder}/{{split}}.jsonl", *overrides]
        sets.append(f"retrieval.corpus={self._folder}/corpus.jsonl")
        options = [word for override in sets for word in ("--set", override)]
        code = run_command([*COMMANDS[command], *options, "--workspace", str(self.workspace)])
        return code, *self._capsys.readouterr()


@pytest.fixture
def asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Asked:
    return Asked(tmp_path, capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_long_question_is_refused_before_anything_is_done(command: str, asked: Asked) -> None:
    asked.write("train", [*flashrag_rows(world_questions("train", 3)), LONG])
    code, out, err = asked.run(command)
    assert code == (1 if command == "doctor" else 2)
    complaint = (out if command == "doctor" else err).replace("\n", " ")
    assert f"own:train: the prompt of question 'long' has {NUM_LONG} tokens, at most 256 may be" in complaint
    assert "(rollout.max_prompt_tokens); raise that setting, or leave such questions out" in complaint
    assert "1 of 4 rows of own:train cannot be used (1 with a prompt too long)" in complaint
    assert not list((asked.workspace / "artifacts").glob("run=*"))


def test_a_long_question_is_left_out_and_counted_by_the_share_of_bad_rows(asked: Asked) -> None:
    rows = flashrag_rows(world_questions("train", 2))
    asked.write("train", [rows[0], LONG, rows[1], {"id": "none", "question": "Who?", "golden_answers": []}])
    allowed = "data.max_dropped_share=0.5"
    code, out, _ = asked.run("prepare", allowed)
    assert code == 0
    assert "1 a prompt too long" in out
    assert "1 no answers" in out
    assert "tokens; at most 256 may be" in out
    code, out, err = asked.run("prepare", "data.max_dropped_share=0.3")
    assert code == 2, "both sorts of rows count together"
    assert "2 of 4 rows of own:train cannot be used" in err
    assert asked.run("doctor", allowed)[0] == 0
    assert asked.run("train", allowed)[0] == 0
    kept = read_run_inputs(Workspace(asked.workspace), "run")
    asked.write("train", rows)
    assert asked.run("train", "data.max_dropped_share=0.5")[0] == 0, "the same questions without the bad rows"
    assert kept == read_run_inputs(Workspace(asked.workspace), "run")
    done = Storage(Workspace(asked.workspace)).ledger.done(StageKey(run="run", iteration=1, stage="sample"))
    assert done is not None
    assert done.attempt == 1


@pytest.mark.parametrize("command", ["train", "doctor", "prepare"])
def test_more_questions_an_iteration_than_there_are(command: str, asked: Asked) -> None:
    asked.write("train", flashrag_rows(world_questions("train", 8)))
    code, out, err = asked.run(command, "data.questions_per_iteration=9")
    assert code == (1 if command == "doctor" else 2)
    assert "data.questions_per_iteration is 9, but the split has only 8 questions" in (out + err).replace("\n", " ")
    assert not (asked.workspace / "artifacts").exists(), "not even the first evaluation was begun"


def test_what_is_left_must_be_enough_for_an_iteration(asked: Asked) -> None:
    asked.write("train", [*flashrag_rows(world_questions("train", 1)), LONG])
    code, _, err = asked.run("train", "data.max_dropped_share=0.5")
    assert code == 2
    assert "data.questions_per_iteration is 2, but the split has only 1 questions" in err
    asked.write("train", [LONG])
    code, _, err = asked.run("train", "data.max_dropped_share=1.0", "data.questions_per_iteration=1")
    assert code == 2
    assert f"no question of own:train is left; own:train: the prompt of question 'long' has {NUM_LONG}" in err


def test_the_context_counts_where_it_is_shorter_than_the_setting(
    asked: Asked, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in Path(model_folder("mini")).iterdir():
        content = path.read_bytes()
        if path.name == "config.json":
            content = json.dumps(json.loads(content) | {"max_position_embeddings": 500}).encode()
        (model / path.name).write_bytes(content)
    asked.write("train", [*flashrag_rows(world_questions("train", 2)), LONG])
    overrides = [f"model.path={model}", "rollout.max_prompt_tokens=2048"]
    for command in ("train", "doctor", "prepare"):
        code, out, err = asked.run(command, *overrides)
        assert code != 0
        found = (out + err).replace("\n", " ")
        assert f"has {NUM_LONG} tokens, at most 496 may be (what the context holds, with room to answer)" in found
    code, _, _ = asked.run("doctor", *overrides, "data.max_dropped_share=0.5", "rollout.max_observation_tokens=480")
    assert code == 0
    assert "does not hold the longest prompt" in caplog.text


def test_a_question_of_megabytes_is_not_tokenised(asked: Asked) -> None:
    rows = [{**LONG, "question": "why " * 3_000_000}, {**LONG, "id": "line", "question": "w" * 17_000_000}]
    asked.write("train", [*rows, *flashrag_rows(world_questions("train", 2))])
    started = time.process_time()
    code, out, _ = asked.run("prepare", "data.max_dropped_share=0.5")
    assert time.process_time() - started < 10
    assert code == 0
    assert "the prompt of question 'long' has more than 187500 tokens, at most 256 may be" in out
    assert "line 2: more than 16777216 bytes; expected one row per line" in out


def test_a_prompt_leaves_room_to_answer() -> None:
    rollout = RolloutSettings(max_prompt_tokens=100, max_new_tokens=50)
    assert [longest_prompt(rollout, context) for context in (None, 1000, 116, 115, 60)] == [100, 100, 100, 99, 44]
    assert longest_prompt(RolloutSettings(max_prompt_tokens=100, max_new_tokens=4), 60) == 56
