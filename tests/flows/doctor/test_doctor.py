"""What the doctor finds, on this machine and on others that are made up."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from flows.app import run_command
from flows.doctor.checks import Check
from flows.doctor.doctor import Asked, diagnose
from flows.doctor.hardware import Gpu, Hardware
from flows.doctor.hub import hub_data, model_files
from flows.retrieval.bm25 import BM25Source
from flows.retrieval.corpora import import_corpus
from flows.settings.load import load_settings
from schemas.settings.retrieval import BM25RetrievalSettings
from storage.workspace import Workspace

BARE = Hardware(ram_bytes=64 * 10**9, gpus=(), torch_cuda=None, vllm=None)
H100 = Hardware(512 * 10**9, (Gpu("H100", 85 * 10**9),), "12.8", "0.32.0")


@pytest.fixture(autouse=True)
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No hub cache, whatever this machine has; and no Prefect server that the environment names."""
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(hub), raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return hub


def checks(tmp_path: Path, config: str, hardware: Hardware = BARE, *overrides: str) -> dict[str, Check]:
    settings = load_settings(config, overrides)
    found = diagnose(Asked(config, overrides, Workspace(tmp_path / "workspace")), settings, hardware)
    return {check.name: check for check in found}


def missing(found: dict[str, Check]) -> set[str]:
    assert all(check.ok or check.remedy for check in found.values()), "whoever misses something is told what to do"
    return {name for name, check in found.items() if not check.ok}


def test_the_quickstart_needs_nothing_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "quickstart", "--workspace", str(tmp_path / "workspace")]) == 0
    assert "quickstart: nothing is missing" in capsys.readouterr().out
    assert not (tmp_path / "workspace").exists(), "a look leaves nothing behind"


def test_the_paper_s_settings_name_all_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = missing(checks(tmp_path, "paper_3b"))
    assert found >= {"model", "tokenizer", "encoder", "corpus", "index, dense", "vLLM", "GPU"}
    assert len([name for name in found if name.startswith("questions ")]) == 10
    assert run_command(["doctor", "paper_3b", "--workspace", str(tmp_path / "workspace")]) == 1
    printed = capsys.readouterr().out
    assert "hf download Qwen/Qwen2.5-3B-Instruct" in printed
    assert "sdsearch data prepare paper_3b" in printed


@pytest.mark.parametrize(
    ("config", "overrides", "fits"),
    [
        ("paper_3b", [], True),
        ("paper_3b", ["update.gradient_checkpointing=false"], False),
        ("paper_3b", ["sampling.sleep_while_training=false"], False),
        ("paper_3b", ["model.device=cuda:1"], False),
        ("paper_7b", [], False),
        ("paper_7b", ["model.tuning=lora"], True),
    ],
    ids=str,
)
def test_a_gpu_of_80_gb_holds_what_it_can(tmp_path: Path, config: str, overrides: list[str], fits: bool) -> None:
    found = checks(tmp_path, config, H100, *overrides)
    assert found["GPU"].ok == fits
    assert found["vLLM"].ok


def test_an_engine_with_cards_of_its_own_takes_nothing_of_the_trainers(tmp_path: Path) -> None:
    """Without sleep mode an 80 GB card does not hold both; with a second card the engine has it alone."""
    two = H100._replace(gpus=H100.gpus * 2)
    awake = ("sampling.sleep_while_training=false", "sampling.devices=[1]")
    found = checks(tmp_path, "paper_3b", two, *awake)
    assert found["GPU"].ok
    assert found["GPUs of the sampler"].ok
    assert found["GPUs of the sampler"].found == "1 of 1, the smallest with 85.0 GB"
    assert not checks(tmp_path, "paper_3b", H100, *awake)["GPUs of the sampler"].ok, "it is not there"
    narrow = ("sampling.gpu_memory_utilization=0.05",)
    assert not checks(tmp_path, "paper_3b", two, *awake, *narrow)["GPUs of the sampler"].ok
    assert "GPUs of the sampler" not in checks(tmp_path, "paper_3b", two, "sampling.devices=[0]")


def test_ranks_are_looked_for_on_their_cards(tmp_path: Path) -> None:
    small, large = H100.gpus[0]._replace(total_bytes=20_000_000_000), H100.gpus[0]
    mixed = H100._replace(gpus=(small, large, large))
    ranks = ("distributed.ranks=2", "model.device=cuda")
    assert checks(tmp_path, "paper_3b", mixed, *ranks, "distributed.devices=[1,2]")["GPUs of ranks"].ok
    assert not checks(tmp_path, "paper_3b", mixed, *ranks)["GPUs of ranks"].ok
    assert not checks(tmp_path, "paper_3b", mixed, *ranks, "distributed.devices=[2,3]")["GPUs of ranks"].ok


def test_a_model_and_data_in_the_hub_s_cache_are_found(tmp_path: Path, empty_hub: Path) -> None:
    snapshot = empty_hub / "models--Qwen--Qwen2.5-3B-Instruct" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc", encoding="utf-8")
    for name in ("config.json", "tokenizer.json", "one.safetensors"):
        (snapshot / name).write_text("{}", encoding="utf-8")
    weights = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(weights), encoding="utf-8")
    assert model_files("Qwen/Qwen2.5-3B-Instruct").missing == ("two.safetensors",)
    (snapshot / "two.safetensors").write_text("{}", encoding="utf-8")
    assert model_files("Qwen/Qwen2.5-3B-Instruct").missing == ()

    assert hub_data("RUC-NLPIR/FlashRAG_datasets", "nq", "test") is None
    kept = tmp_path / "datasets" / "RUC-NLPIR___flash_rag_datasets" / "nq" / "0.0.0" / "abc"
    kept.mkdir(parents=True)
    (kept / "flash_rag_datasets-test.arrow").touch()
    assert hub_data("RUC-NLPIR/FlashRAG_datasets", "nq", "test") is not None
    assert hub_data("RUC-NLPIR/FlashRAG_datasets", "nq", "train") is None


def test_files_are_looked_at(tmp_path: Path) -> None:
    row = {"id": "1", "question": "Who?", "golden_answers": ["x"]}
    (tmp_path / "good.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"query": 1}', encoding="utf-8")
    sets = ["data.train=['good', 'bad', 'gone']", f"data.questions={tmp_path}/{{dataset}}.jsonl", "data.dataset=good"]
    found = checks(tmp_path, "tiny", BARE, *sets)
    assert missing(found) == {"questions bad:train", "questions gone:train"}
    assert "columns are query" in found["questions bad:train"].remedy
    model = tmp_path / "model"
    model.mkdir()
    assert missing(checks(tmp_path, "tiny", BARE, f"model.path={model}")) == {"model", "tokenizer", "memory"}


def corpus_of(workspace: Workspace) -> Path:
    """The folder of a corpus of three million passages, made up but for what is looked at; and one for an index."""
    passage = {"id": "1", "contents": '"A"\ntext'}
    file = workspace.root / "wiki.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(passage), encoding="utf-8")
    folder = import_corpus(file, workspace, 0).folder
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"num_passages": 3_000_000}), encoding="utf-8")
    index = workspace.indexes / "index"
    index.mkdir(parents=True)
    hashes = {"corpus_hash": manifest["source_sha256"], "encoder_hash": "b" * 64, "index_hash": "", "files": []}
    sizes = {"num_passages": 3_000_000, "num_dimensions": 768}
    (index / "manifest.json").write_text(json.dumps(hashes | sizes), encoding="utf-8")
    return index


def test_an_index_is_of_a_corpus_by_an_encoder_and_of_a_kind(tmp_path: Path) -> None:
    index = corpus_of(Workspace(tmp_path / "workspace"))
    e5 = ["retrieval.corpus=wiki", "retrieval.encoder={kind='hf', path='intfloat/e5-base-v2'}"]
    (index / "encoder.json").write_text(json.dumps({"kind": "hf", "path": "other/encoder"}), encoding="utf-8")
    assert missing(checks(tmp_path, "tiny", BARE, *e5)) == {"encoder", "index, dense"}
    assert missing(checks(tmp_path, "tiny", BARE, "retrieval.corpus=wiki")) == {"index, dense"}
    (index / "encoder.json").write_text(json.dumps({"kind": "hf", "path": "intfloat/e5-base-v2"}), encoding="utf-8")
    assert missing(checks(tmp_path, "tiny", BARE, *e5)) == {"encoder"}
    compact = [*e5, "retrieval.index={kind='ivf_sq'}"]
    assert missing(checks(tmp_path, "tiny", BARE, *compact)) == {"encoder", "index, dense"}


def test_indexes_of_words_are_found_by_their_recipe(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "workspace")
    corpus_of(workspace)
    hybrid = ["retrieval={kind='hybrid', corpus='wiki'}"]
    assert missing(checks(tmp_path, "tiny", BARE, *hybrid)) == {"index, dense", "index, bm25"}
    folder = BM25Source(BM25RetrievalSettings(corpus="wiki"), workspace).folder
    folder.mkdir(parents=True)
    (folder / "manifest.json").touch()
    assert missing(checks(tmp_path, "tiny", BARE, *hybrid)) == {"index, dense"}


def test_servers_are_knocked_at(tmp_path: Path) -> None:
    http = ["retrieval={kind='http', urls=['http://127.0.0.1:%d']}"]
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        assert missing(checks(tmp_path, "tiny", BARE, http[0] % port)) == set()
        servers = ["sampling.kind=vllm_server", f"sampling.urls=['{url}']", "sampling.api_key_env=NO_SUCH_KEY"]
        assert missing(checks(tmp_path, "tiny", BARE, *servers)) == {"$NO_SUCH_KEY"}
    assert missing(checks(tmp_path, "tiny", BARE, http[0] % port)) == {f"retriever {url}"}


def test_too_little_memory_or_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = BARE._replace(ram_bytes=10**9)
    monkeypatch.setattr("flows.doctor.checks.free_bytes", lambda folder: 10**6)
    assert missing(checks(tmp_path, "quickstart", small)) == {"RAM", "disk"}


def test_ranks_need_a_card_each_that_holds_their_shards(tmp_path: Path) -> None:
    eight = Hardware(512 * 10**9, H100.gpus * 8, "12.8", "0.32.0")
    found = checks(tmp_path, "paper_7b", eight, "distributed.ranks=8", "model.device=cuda")
    assert found["GPU"].ok
    assert found["GPUs of ranks"].ok
    assert "8 with 4" in found["GPUs of ranks"].needed
    assert "(sharding full: a copy over 8)" in found["GPUs of ranks"].needed
    assert "gathered" in found["GPU"].needed
    whole = checks(
        tmp_path, "paper_7b", eight, "distributed.ranks=8", "model.device=cuda", "distributed.sharding=replicate"
    )
    assert not whole["GPUs of ranks"].ok
    assert "distributed.sharding = 'full'" in whole["GPUs of ranks"].remedy
    few = checks(tmp_path, "paper_3b", H100, "distributed.ranks=2", "model.device=cuda")
    assert not few["GPUs of ranks"].ok
    assert "GPUs of ranks" not in checks(tmp_path, "paper_3b", H100)


def test_ranks_on_a_cpu_share_its_memory(tmp_path: Path) -> None:
    alone, two = (checks(tmp_path, "tiny", BARE, f"distributed.ranks={ranks}")["RAM"] for ranks in (1, 2))
    assert "2 ranks of" in two.needed
    assert float(two.needed.split()[0]) > 1.5 * float(alone.needed.split()[0])


def test_a_machine_holds_its_own_ranks_alone(tmp_path: Path) -> None:
    eight = Hardware(512 * 10**9, H100.gpus * 8, "12.8", "0.32.0")
    spread = ["distributed.ranks=16", "distributed.nodes=2", "distributed.endpoint=node0:29500", "model.device=cuda"]
    assert checks(tmp_path, "paper_7b", eight, *spread)["GPUs of ranks"].ok
    assert "a copy over 16" in checks(tmp_path, "paper_7b", eight, *spread)["GPUs of ranks"].needed
    on_cpu = ["distributed.ranks=2", "distributed.nodes=2", "distributed.endpoint=node0:29500"]
    assert "1 ranks of" in checks(tmp_path, "tiny", BARE, *on_cpu)["RAM"].needed
