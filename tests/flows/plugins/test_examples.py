"""The examples of docs/plugins.md: short, and at work together in one run."""

from __future__ import annotations

import io
import json
import re
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from flows.console.errors import UserError
from flows.data.questions import Questions
from flows.plugins.show import list_plugins
from flows.run.progress import SilentReporter
from flows.settings.layers import Layer, merge
from flows.settings.load import load_settings
from flows.settings.show import toml_lines
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.plugins import KINDS
from schemas.settings.data import SetName
from schemas.settings.root import Settings
from storage.runs.run_inputs import read_run_inputs
from tests.support.plugging import examples, write_example

NOTES = """Lima
The capital of Peru is Lima.

Oslo
The capital of Norway is Oslo.

Quito
The capital of Ecuador is Quito.
"""
QUESTIONS = "question,answers\nWhat is the capital of Peru,Lima|Ciudad de Lima\nWhat is the capital of Norway,Oslo\n"
MY_TAGS = """from sdsearch.protocol.parsing import TagProtocol


class MyTags(TagProtocol):
    documents = ("\\n<documents>\\nFound:\\n", "\\n</documents>\\n")
"""
QUICK = [
    "evaluation.num_questions=2",
    "data.questions_per_iteration=2",
    "model.torch_threads=1",
    "iterations=1",
    "distillation.warmup_iterations=0",
]


def write_all(folder: Path) -> Path:
    """Write every example's file, what they read, and one settings file that chooses them all."""
    for split in ("train", "dev"):
        (folder / f"{split}.csv").write_text(QUESTIONS, encoding="utf-8")
    (folder / "notes.txt").write_text(NOTES, encoding="utf-8")
    for name in examples():
        write_example(name, folder)
    (folder / "my_tags.py").write_text(MY_TAGS, encoding="utf-8")
    mine = folder / "mine.toml"
    chosen = merge([Layer(name, tomllib.loads(settings)) for name, (_, settings) in examples().items()])
    mine.write_text("\n".join(['base = "tiny"', *toml_lines(chosen)]), encoding="utf-8")
    return mine


def settings_of(config: Path, *overrides: str) -> Settings:
    return load_settings(str(config), [*QUICK, *overrides])


def test_there_is_a_short_example_of_every_kind(mine: Path) -> None:
    chosen = "\n".join(settings for _, settings in examples().values())
    assert all(re.search(rf"^{kind.setting.partition('.')[2]} = ", chosen, re.MULTILINE) for kind in KINDS.values())
    assert all(source.count("\n") <= 40 for source, _ in examples().values())


def test_every_example_is_at_work_in_one_run(mine: Path) -> None:
    # The mini policy writes tags alone: with another protocol it would search nothing.
    settings = settings_of(write_all(mine), "rollout.protocol=my_tags:MyTags")
    train_plain(settings, "first", mine / "workspace", SilentReporter())
    database = open_storage(mine / "workspace").database
    questions = database.query("SELECT question, golden_answers FROM questions ORDER BY question").to_pylist()
    assert questions[1] == {"question": "What is the capital of Peru?", "golden_answers": ["Lima", "Ciudad de Lima"]}
    titles = database.query("SELECT DISTINCT unnest(titles) AS title FROM searches").to_pylist()
    assert {row["title"] for row in titles} <= {"Lima", "Oslo", "Quito"}
    assert titles
    shown = database.query(
        "SELECT observation_text AS text FROM turns WHERE observation_kind = 'documents'"
    ).to_pylist()
    assert all(row["text"].startswith("\n<documents>\nFound:\n") for row in shown)
    blocks = database.query("SELECT unnest(contents) AS shown FROM hindsight_attempts").to_pylist()
    assert blocks
    assert all(re.search(r" \(found: \d of \d\)$", row["shown"]) for row in blocks)
    credit = database.query("SELECT jsd, divergence FROM query_credit").to_pylist()
    assert credit
    assert any(row["divergence"] != pytest.approx(row["jsd"], rel=1e-3) for row in credit)
    assert all(-1e-6 <= row["divergence"] <= 1.7 for row in credit), "KL to a mixture with a fifth is at most ln 5"
    gates = database.query(
        "SELECT gate, teacher_logprob - student_logprob AS log_ratio FROM v_token_credit"
    ).to_pylist()
    assert all(row["gate"] == float(abs(row["log_ratio"]) >= 0.05) for row in gates)
    assert {row["gate"] for row in gates} == {0.0, 1.0}
    parts = database.query("SELECT DISTINCT part FROM reward_parts ORDER BY part")["part"].to_pylist()
    assert parts == ["f1", "searches"]
    kept = read_run_inputs(open_storage(mine / "workspace").workspace, "first")
    assert kept is not None
    assert {setting: list(files) for setting, files in kept.plugins.items()} == {
        kind.setting: [f"{name}.py"] for kind, name in _files_by_kind()
    }
    figures = (mine / "my_figures" / "first.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in figures]
    assert [line["iteration"] for line in lines] == [0, 1]
    (row,) = database.query("SELECT reward_mean FROM iteration_metrics").to_pylist()
    assert lines[1]["reward_mean"] == row["reward_mean"]


def _files_by_kind() -> list[tuple]:
    files = {"reward": "my_reward", "divergence": "my_divergence", "block": "my_block", "retriever": "my_retriever"}
    files |= {"reader": "my_reader", "protocol": "my_tags", "gate": "my_gate"}
    return [(KINDS[kind], name) for kind, name in files.items()]


def test_a_reader_that_fails_is_told_with_its_file_and_row(mine: Path) -> None:
    settings = settings_of(write_all(mine))
    (mine / "train.csv").write_text("question,answer\nWho,Me\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.reader, .*train\.csv: KeyError: 'answers'; correct the file or the re"):
        Questions(settings.data).read(SetName("mine", "train"))
    (mine / "train.csv").write_text("question,answers\nWho,\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.csv, row 1: 'golden_answers' is \[''\]"):
        Questions(settings.data).read(SetName("mine", "train"))
    (mine / "train.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv: no such file"):
        Questions(settings.data).read(SetName("mine", "train"))


def test_a_divergence_that_cannot_be_trained_is_refused_at_the_start(mine: Path) -> None:
    config = write_all(mine)
    bad = "def flat(teacher_QC, student_QC):\n    return (teacher_QC.exp() * teacher_QC).sum(dim=1)\n"
    wide = "\ndef wide(teacher_QC, student_QC):\n    return student_QC - teacher_QC\n"
    (mine / "bad_divergence.py").write_text(bad + wide, encoding="utf-8")
    for name, told in (("flat", "without a gradient to the student"), ("wide", r"returned \(2, 3\) for \(2, 3\) log")):
        settings = settings_of(config, f"distillation.divergence=bad_divergence:{name}")
        with pytest.raises(UserError, match=told):
            train_plain(settings, "refused", mine / "workspace", SilentReporter())
    assert open_storage(mine / "workspace").ledger.list_runs() == []


def test_the_list_marks_what_settings_use(mine: Path) -> None:
    config = write_all(mine)
    shown = io.StringIO()
    list_plugins(str(config), QUICK, Console(file=shown, width=250))
    rows = [line.split() for line in shown.getvalue().splitlines() if " yes " in line]
    assert len(rows) == len(KINDS)
    assert "tracking.sinks chooses the trackers; a package adds more as sdsearch.sinks" in shown.getvalue()
    assert "my_reward:Brevity" in shown.getvalue()
    assert "price" in shown.getvalue()
    assert "The answer's F1 less a price for every search after the first." in shown.getvalue()
    without = io.StringIO()
    list_plugins(None, [], Console(file=without, width=250))
    assert "my_reward" not in without.getvalue()
    for name in (name for kind in KINDS.values() for name in kind.shipped):
        assert name in without.getvalue()
