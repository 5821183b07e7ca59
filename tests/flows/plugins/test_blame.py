"""A person's own code that raises: one line with its place, whatever its kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.app import run_command
from flows.training.job import open_storage
from sdsearch.plugins import PluginError, blaming_plugins, load_plugin
from tests.flows.plugins.test_examples import QUICK, write_all
from tests.support.plugging import write_example

BROKEN = [
    ("my_divergence.py", "def __call__(self, teacher_QC, student_QC):", "distillation.divergence", "SkewedKL"),
    ("my_gate.py", "def __call__(self, tokens):", "distillation.gate", "AtLeast"),
    ("my_block.py", "def with_hits(member):", "hindsight.masking", "with_hits"),
    # These two say first what they were at.
    ("my_retriever.py", "def search(self, queries, top_k):", "the retriever failed on query", "KeyError"),
    ("my_reader.py", "def __call__(self, path, dataset, split):", "data.reader", "train.csv: KeyError"),
    ("my_protocol.py", "def parse(self, text):", "rollout.protocol", "ToolCalls"),
]


def break_at(path: Path, header: str) -> int:
    """Let a function raise a KeyError; return the number of the line that does."""
    lines = path.read_text(encoding="utf-8").splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.strip() == header]
    indent = " " * (len(lines[at]) - len(lines[at].lstrip()) + 4)
    lines.insert(at + 1, f"{indent}{{}}['lost']")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return at + 2


@pytest.mark.parametrize(("file", "header", "setting", "name"), BROKEN)
def test_a_plugin_that_raises_is_one_line(
    mine: Path, capsys: pytest.CaptureFixture[str], file: str, header: str, setting: str, name: str
) -> None:
    write_all(mine)
    config = write_example(file, mine)
    line = break_at(mine / file, header)
    options = [word for setting in QUICK for word in ("--set", setting)]
    assert (
        run_command(["train", str(config), "--run", "first", "--workspace", str(mine / "ws"), "--no-prefect", *options])
        == 2
    )
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    (told,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(rf"{re.escape(setting)}.*{name}.*lost", told), told
    if file not in ("my_retriever.py", "my_reader.py"):
        assert f"{file}:{line} with KeyError: 'lost'; correct it, or choose another" in told


def test_what_fails_in_a_stage_is_kept_with_the_attempt(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_example("my_block.py", mine)
    break_at(mine / "my_block.py", "def with_hits(member):")
    options = [word for setting in QUICK for word in ("--set", setting)]
    assert (
        run_command(["train", str(config), "--run", "first", "--workspace", str(mine / "ws"), "--no-prefect", *options])
        == 2
    )
    capsys.readouterr()
    failed = "SELECT stage, error FROM stages WHERE status = 'failed'"
    (row,) = open_storage(mine / "ws").database.query(failed).to_pylist()
    assert row["stage"] == "hindsight"
    assert row["error"].startswith("PluginError: hindsight.masking: 'my_block:with_hits' failed at my_block.py:")


def test_errors_of_this_program_stay_as_they_are(mine: Path) -> None:
    write_example("my_gate.py", mine)
    load_plugin("gate", "my_gate:AtLeast")
    with pytest.raises(KeyError), blaming_plugins():
        raise KeyError("ours")
    with pytest.raises(MemoryError), blaming_plugins():
        raise MemoryError
    refused = PluginError("said already")
    with pytest.raises(PluginError) as caught, blaming_plugins():
        raise refused
    assert caught.value is refused
