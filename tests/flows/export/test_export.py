"""Exports: the same policy in a plain folder, a card that says what the tables say, and a hub that takes it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import flows.export.answer
from flows.app import run_command
from flows.evaluation.plan import Request, plan_run
from flows.evaluation.work import evaluate
from flows.run.live import open_runtime
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings, stored_settings
from flows.training.job import open_storage
from flows.training.loop import train_plain
from schemas.records.evaluation import told_conditions

pytestmark = pytest.mark.long

SHORT = [
    *("iterations=1", "data.questions_per_iteration=2", "rollout.group_size=2", "rollout.max_searches=1"),
    *("rollout.max_new_tokens=30", "evaluation.num_questions=3", "model.torch_threads=1"),
    *("distillation.warmup_iterations=0", "evaluation.modes=['greedy']"),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workspace")
    train_plain(load_settings("tiny", SHORT), "full", folder, SilentReporter())
    lora = ["model.tuning=lora", "model.lora_rank=4"]
    train_plain(load_settings("tiny", [*SHORT, *lora]), "lora", folder, SilentReporter())
    return folder


def export(workspace: Path, *words: str) -> int:
    return run_command(["export", *words, "--workspace", str(workspace)])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("run", ["full", "lora"])
def test_the_folder_is_the_runs_policy(workspace: Path, tmp_path: Path, run: str) -> None:
    assert export(workspace, run, "--to", str(tmp_path / "out")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    storage = open_storage(workspace)
    settings = stored_settings(storage.ledger.get_run(run))
    with open_runtime(settings, run, storage, SilentReporter()) as live:
        live.policy.move_to(1)
        torch.testing.assert_close(logits(model), logits(live.policy.model), rtol=1e-5, atol=1e-5)
        live.policy.move_to(0)
        assert not torch.allclose(logits(model), logits(live.policy.model), atol=1e-5), "it has learnt"
        assert tokenizer.get_vocab() == live.policy.tokenizer.get_vocab()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "answer.py"} <= names
    assert not names & {"optimiser", "manifest.json", "adapter_model.safetensors"}


def test_an_adapter_stays_apart(workspace: Path, tmp_path: Path) -> None:
    assert export(workspace, "lora", "--to", str(tmp_path / "out"), "--adapter") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    assert not names & {"model.safetensors", "answer.py"}
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_the_tables_say(workspace: Path, tmp_path: Path) -> None:
    storage = open_storage(workspace)
    plan = plan_run(storage.ledger.get_run("full"), [], Request(split="test", num_questions=2, name="full-test"))
    evaluate(plan, storage, SilentReporter())
    assert export(workspace, "full", "--to", str(tmp_path / "out")) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    rows = storage.database.query("SELECT * FROM evaluations WHERE policy_version = 1 AND run LIKE 'full%'").to_pylist()
    assert {(row["split"], row["num_questions"]) for row in rows} == {("dev", 3), ("test", 2)}
    for row in rows:
        said = f"| {row['num_questions']} of world:{row['split']} | greedy | {row['em']:.3f} ("
        (line,) = (line for line in card.splitlines() if line.startswith(said))
        assert f"| {row['f1']:.3f} | {row['search_quality']:.3f} |" in line
    made_under = storage.database.query("SELECT * FROM evaluation_conditions WHERE run LIKE 'full%'").to_pylist()
    assert "- searched: world (dense, flat, lexical), index " in card
    assert [line for line in told_conditions(made_under) if f"- {line}\n" in card] == told_conditions(made_under)
    assert "| judge |" not in card
    with storage.database.transaction() as connection:
        connection.execute(
            "INSERT INTO judged_evaluations SELECT run, iteration, mode, dataset, split, 'm', 'p', 2, 0.123 FROM "
            "evaluations WHERE run = 'full-test'"
        )
    assert export(workspace, "full", "--to", str(tmp_path / "judged")) == 0
    (line,) = [one for one in (tmp_path / "judged" / "README.md").read_text().splitlines() if "world:test" in one]
    assert line.endswith("| 0.123 |")
    assert "1 of 1 updates of run `full` from `mini`" in card
    assert "GeoNames (CC BY 4.0)" in card
    assert "Question: {}" in card
    assert "group_size = 2" in card


def test_rollouts_open_elsewhere(workspace: Path, tmp_path: Path) -> None:
    assert export(workspace, "full", "--rollouts", "--to", str(tmp_path / "data")) == 0
    table = pq.read_table(tmp_path / "data" / "rollouts.parquet").to_pylist()
    assert len(table) == 4
    opened = datasets.load_dataset(
        "json", data_files=str(tmp_path / "data" / "conversations.jsonl"), split="train", cache_dir=str(tmp_path / "c")
    )
    by_id = {row["rollout_id"]: row for row in table}
    turns = open_storage(workspace).database.query("SELECT * FROM turns WHERE run = 'full' ORDER BY turn").to_pylist()
    assert len(opened) == 4
    for conversation in opened:
        messages = conversation["messages"]
        own = [turn for turn in turns if turn["rollout_id"] == conversation["rollout_id"]]
        assert messages[0] == {"role": "user", "content": by_id[conversation["rollout_id"]]["question"]}
        assert [m["content"] for m in messages if m["role"] == "assistant"] == [turn["text"] for turn in own]
        replies = [turn["observation_text"] for turn in own if turn["observation_text"] is not None]
        assert [m["content"] for m in messages if m["role"] == "tool"] == replies
        assert [turn["kind"] for turn in conversation["turns"]] == [turn["action"] for turn in own]
        found = [turn["observation_kind"] == "documents" for turn in own]
        assert [bool(turn["passages"]) for turn in conversation["turns"]] == found
        assert conversation["reward"] == by_id[conversation["rollout_id"]]["reward"]


def test_what_cannot_be_exported_is_one_line(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    for words, said in {
        ("full", "--to", str(tmp_path / "full")): "there is something already; name a folder that is empty",
        ("full", "--to", str(tmp_path / "a"), "--version", "7"): "no checkpoint of version 7; it has: 0, 1",
        ("full", "--to", str(tmp_path / "a"), "--adapter"): "tunes all weights and has no LoRA adapter",
        ("full-test", "--to", str(tmp_path / "a")): "is an evaluation itself",
        ("nobody", "--to", str(tmp_path / "a")): "nobody",
        ("full", "--to", str(tmp_path / "a"), "--rollouts", "--push", "me/it"): "leave --version, --adapter and --push",
    }.items():
        assert export(workspace, *words) == 2, words
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert (tmp_path / "full" / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "a").exists()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push asks for; remembers what was committed. Its `refuses` answers 403 to all."""

    committed: dict[str, list[str]]
    refuses: bool

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        host = f"http://{self.headers['Host']}"
        if type(self).refuses:
            self._reply({"error": "no"}, 403)
        elif self.path == "/api/repos/create":
            self._reply({"url": f"{host}/me/it", "name": "me/it"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._reply({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" not in self.path:  # The card's front matter is looked at before.
            self._reply({"errors": [], "warnings": []})
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            type(self).committed[self.path] = [x["value"]["path"] for x in lines if x["key"] == "file"]
            self._reply({"commitUrl": f"{host}/me/it/commit/1", "commitOid": "1", "hookOutput": "", "success": True})

    def do_GET(self) -> None:
        self._reply({"sha": "0", "siblings": [], "id": "me/it"})

    def _reply(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Own(Hub):
        committed: dict[str, list[str]] = {}  # noqa: RUF012
        refuses = False

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield Own
    server.shutdown()
    server.server_close()


def test_a_policy_is_pushed(
    workspace: Path, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(workspace, "full", "--to", str(tmp_path / "out"), "--push", "me/it") == 0
    assert "pushed: http://127.0.0.1" in capsys.readouterr().out
    (committed,) = hub.committed.values()
    assert set(committed) == {path.name for path in (tmp_path / "out").iterdir()}


def test_a_hub_that_refuses_leaves_the_folder(
    workspace: Path, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = True
    assert export(workspace, "full", "--to", str(tmp_path / "out"), "--push", "me/it") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--push me/it: the hub did not take" in line
    assert "HF_TOKEN" in line
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_script_asks_as_the_run_did(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an engine that says what it is told to; a real one is in tests/vllm."""
    assert export(workspace, "full", "--to", str(tmp_path / "out")) == 0
    capsys.readouterr()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompts: list[list[int]] = []
    said = ["<think> x </think>\n<search> the  capital </search>", "<answer> Paris </answer>"]

    class Engine:
        def __init__(self, folder: str, **options: Any) -> None:
            assert (folder, options["dtype"]) == (str(tmp_path / "out"), "float32")

        def get_tokenizer(self) -> Any:
            return tokenizer

        def generate(self, prompt: dict[str, list[int]], decoding: Any, use_tqdm: bool) -> list[Any]:
            assert decoding.stop == ["</search>", "</answer>"]
            prompts.append(list(prompt["prompt_token_ids"]))
            text = said[len(prompts) - 1]
            ids = tokenizer.encode(text, add_special_tokens=False)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=ids)])]

    vllm = SimpleNamespace(LLM=Engine, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(flows.export.answer, "__file__", str(tmp_path / "out" / "answer.py"))
    asked: list[tuple[str, str, int]] = []

    def search(url: str, query: str, num_passages: int) -> str:
        asked.append((url, query, num_passages))
        return "Doc 1(Title: France) Paris is the capital."

    monkeypatch.setattr(flows.export.answer, "search", search)
    monkeypatch.setattr(sys, "argv", ["answer.py", "Which city?", "--retriever", "http://x/retrieve"])
    flows.export.answer.main()
    assert asked == [("http://x/retrieve", "the capital", 3)]
    assert tokenizer.decode(prompts[0]).startswith("Question: Which city?")
    observed = "\n<documents>\nDoc 1(Title: France) Paris is the capital.\n</documents>\n"
    assert tokenizer.decode(prompts[1]) == tokenizer.decode(prompts[0]) + said[0] + observed
    assert capsys.readouterr().out.splitlines()[-1] == said[1]
