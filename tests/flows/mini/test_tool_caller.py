"""`sdsearch mini build --protocol tool_call`: a folder that other commands open, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

import flows.mini.build
from flows.app import run_command
from flows.settings.model_folder import model_settings
from sdsearch.model.policy import load_tokenizer
from sdsearch.protocol.chat_template import tool_frame
from sdsearch.world.tool_calls import MAX_NEW_TOKENS, measure_tool_calls


@pytest.mark.long
def test_the_folder_serves_the_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(flows.mini.build, "measure_tool_calls", partial(measure_tool_calls, num_questions=2))
    caller = tmp_path / "caller"
    assert run_command(["mini", "build", "--protocol", "tool_call", "--steps", "1", "--out", str(caller)]) == 0
    said = capsys.readouterr().out
    assert "tool calls 1/1, loss" in said
    assert "rollout.protocol=tool_call" in said
    assert tool_frame(load_tokenizer(caller), None, True).call.startswith("<tool_call>")
    brought = model_settings(str(caller))
    assert brought == model_settings("mini") | {"rollout.max_new_tokens": MAX_NEW_TOKENS}
    words = ["evaluate", "--policy", str(caller), "--config", "tiny", "--set", "evaluation.num_questions=2"]
    own = ["--set", "rollout.protocol=tool_call", "--workspace", str(tmp_path / "ws")]
    assert run_command([*words, *own]) == 0, capsys.readouterr().err


def test_what_cannot_be_built_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    build = ["mini", "build", "--protocol", "tool_call", "--out"]
    assert run_command([*build, str(tmp_path / "new"), "--reading", "3"]) == 2
    assert "--reading trains with tags; leave it out" in capsys.readouterr().err
    assert run_command([*build, str(tmp_path)]) == 2
    assert "holds files that are no mini policy" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
