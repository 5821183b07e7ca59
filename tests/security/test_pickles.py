"""No pickle is ever opened and no foreign code is run: booby-trapped files beside, and in place of, the real ones."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from flows.retrieval.open import open_retriever
from flows.run.model_files import model_folder
from flows.run.policy import LivePolicy
from schemas.errors import UserError
from schemas.settings.retrieval import DenseRetrievalSettings
from schemas.settings.root import Settings
from sdsearch.model.policy import load_model, load_tokenizer
from sdsearch.retrieval.hf import HFEncoder
from storage.disk.manifest import write_folder_atomic
from storage.errors import DamagedArtifactError
from storage.runs.checkpoints import CheckpointStore
from storage.workspace import Workspace

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "schemas", "sdsearch", "storage", "benchmarks")
MINI = Path(model_folder("mini"))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.sprung),)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    return tmp_path / "sprung"


@pytest.fixture
def trap(sprung: Path) -> Iterator[bytes]:
    """A pickle that makes the folder `sprung`; the test fails when it is there at the end."""
    content = pickle.dumps(Trap(sprung))
    pickle.loads(content)
    assert sprung.exists(), "the trap works"
    sprung.rmdir()
    yield content
    assert not sprung.exists(), "a pickle was executed"


def torch_trap(sprung: Path) -> bytes:
    """A trap in torch's own zip format, which torch.load opens."""
    buffer = io.BytesIO()
    torch.save({"weight": Trap(sprung)}, buffer)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the mini policy."""
    return Path(shutil.copytree(MINI, tmp_path / "model"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_model_that_has_only_a_pickle_is_refused(name: str, folder: Path, trap: bytes, sprung: Path) -> None:
    (folder / "model.safetensors").unlink()
    for content in (trap, torch_trap(sprung)):
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} is a pickle.*never opened: convert it to safetensors"):
            load_model(folder, "float32")
        with pytest.raises(UserError, match=r"is a pickle.*never opened"):
            HFEncoder.from_pretrained(str(folder))


def test_a_pickle_beside_the_weights_is_left_alone(folder: Path, trap: bytes) -> None:
    (folder / "pytorch_model.bin").write_bytes(trap)
    (folder / "training_args.bin").write_bytes(trap)
    load_model(folder, "float32")
    load_tokenizer(folder)


def test_a_pickle_under_the_name_of_safetensors_is_refused(folder: Path, trap: bytes) -> None:
    (folder / "model.safetensors").write_bytes(trap)
    with pytest.raises(UserError, match="no model could be read"):
        load_model(folder, "float32")


@pytest.mark.parametrize("shard", ["shard.bin", "../model/shard.bin", "/tmp/x.safetensors"])
def test_an_index_of_shards_cannot_name_a_pickle(shard: str, folder: Path, trap: bytes, sprung: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "shard.bin").write_bytes(torch_trap(sprung))
    index = {"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json lists .* no safetensors file beside it"):
        load_model(folder, "float32")


@pytest.mark.parametrize("model_type", ["llama", "strange"])
def test_code_that_comes_with_a_model_is_not_run(model_type: str, folder: Path, sprung: Path) -> None:
    code = f"import os\nos.mkdir({str(sprung)!r})\n"
    (folder / "modeling_evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = model_type
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModel": "modeling_evil.EvilModel",
        "AutoModelForCausalLM": "modeling_evil.EvilModel",
    }
    (folder / "config.json").write_text(json.dumps(config))
    if model_type == "llama":
        load_model(folder, "float32")  # transformers' own class is used, and nothing of the folder's
    else:
        wanted = r"own Python code, which is not run; .* set model\.trust_remote_code = true if you trust it"
        with pytest.raises(UserError, match=wanted):
            load_model(folder, "float32")
        with pytest.raises(UserError, match=r"retrieval\.encoder\.trust_remote_code"):
            HFEncoder.from_pretrained(str(folder))
    assert not sprung.exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(folder: Path, sprung: Path) -> None:
    (folder / "tokenization_evil.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]},
    }
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"the tokenizer of .* not run; .* model\.trust_remote_code = true"):
        load_tokenizer(folder)
    assert not sprung.exists()


def lora_settings() -> Settings:
    model = {"path": "mini", "tuning": "lora", "lora_rank": 2, "torch_threads": 1}
    return Settings.model_validate({"model": model, "grpo": {"kl_coefficient": 0.0}})


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("real_file_stays", [True, False])
def test_a_checkpoint_with_pickles_in_its_manifest(
    tuning: str, real_file_stays: bool, tmp_path: Path, trap: bytes, sprung: Path
) -> None:
    """Whoever can write a checkpoint can write its manifest: the hashes must not be all that keeps pickles out."""
    settings = lora_settings()
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"tuning": tuning})})
    store = CheckpointStore(Workspace.open(tmp_path / "workspace"))
    policy = LivePolicy(settings, "run", store)
    policy.move_to(0)
    policy.save_as(1)
    place = store.path("run", 1)
    real = place / ("model.safetensors" if tuning == "full" else "adapter_model.safetensors")
    if not real_file_stays:
        real.unlink()
    for name in ("pytorch_model.bin", "adapter_model.bin", "optimiser.pt", "optimizer.pt", "scheduler.bin"):
        (place / name).write_bytes(torch_trap(sprung))
    (place / "manifest.json").unlink()
    rewritten = tmp_path / "rewritten"
    write_folder_atomic(rewritten, lambda path: shutil.copytree(place, path, dirs_exist_ok=True) and None, tmp_path)
    shutil.rmtree(place)
    rewritten.rename(place)
    again = LivePolicy(settings, "run", store)
    if real_file_stays:
        again.move_to(1)
        assert again.sha256() == policy.sha256()
    else:
        with pytest.raises((UserError, DamagedArtifactError), match=r"never opened|cannot be read as safetensors"):
            again.move_to(1)


@pytest.mark.parametrize("kind", ["pickle", "object array"])
def test_an_index_whose_encoder_is_a_pickle(kind: str, tmp_path: Path, trap: bytes, sprung: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"id": "1", "contents": '"Andorra"\na state of Europe'}) + "\n")
    workspace = Workspace.open(tmp_path / "workspace")
    settings = DenseRetrievalSettings(corpus=str(corpus))
    retriever, fingerprint = open_retriever(settings, workspace)
    found = retriever.search(["Europe"], 1)
    place = workspace.indexes / fingerprint[:16]
    replace_arrays(place, trap if kind == "pickle" else object_arrays(sprung))
    for name in ("encoder.pkl", "vectorizer.joblib"):
        (place / name).write_bytes(trap)
    again, _ = open_retriever(settings, workspace)
    assert again.search(["Europe"], 1) == found, "what cannot be read is built again"


def object_arrays(sprung: Path) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, idf=np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def replace_arrays(place: Path, content: bytes) -> None:
    """Put other bytes in place of the encoder's arrays, and their hash into the manifest."""
    (place / "encoder.npz").write_bytes(content)
    manifest = json.loads((place / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "encoder.npz":
            entry |= {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    (place / "manifest.json").write_text(json.dumps(manifest))


BANNED_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}


def unsafe_loads(source: str) -> set[str]:
    """Return what of a module's source could run code out of a file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {name for name in names if name.partition(".")[0] in BANNED_MODULES}
        elif isinstance(node, ast.Call):
            found |= {unsafe} if (unsafe := unsafe_call(node)) else set()
    return found


def unsafe_call(call: ast.Call) -> str | None:
    text = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if text in BANNED_CALLS or text in ("torch.load", "pd.read_pickle"):
        return text
    if text in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
        return f"{text} with pickles"
    if text.endswith(".from_pretrained") and text != "HFEncoder.from_pretrained":
        without_weights = text.endswith(("Tokenizer.from_pretrained", "Config.from_pretrained"))
        safe = without_weights or given.get("use_safetensors") == "True"
        return None if safe and "trust_remote_code" in given else text
    return None


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", {"pickle"}),
        ("from joblib import load", {"joblib"}),
        ("torch.load(path, weights_only=True)", {"torch.load"}),
        ("np.load(path)", {"np.load with pickles"}),
        ("np.load(path, allow_pickle=False)", set()),
        ("AutoModel.from_pretrained(path)", {"AutoModel.from_pretrained"}),
        ("AutoModel.from_pretrained(path, use_safetensors=True)", {"AutoModel.from_pretrained"}),
        ("AutoModel.from_pretrained(path, use_safetensors=True, trust_remote_code=False)", set()),
        ("AutoConfig.from_pretrained(path)", {"AutoConfig.from_pretrained"}),
        ("PeftModel.from_pretrained(base, folder)", {"PeftModel.from_pretrained"}),
        ("model.eval()", set()),
    ],
)
def test_an_unsafe_load_is_seen(source: str, found: set[str]) -> None:
    assert unsafe_loads(source) == found


def test_no_module_can_load_a_pickle() -> None:
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 50
    found = {str(path): unsafe for path in sources if (unsafe := unsafe_loads(path.read_text(encoding="utf-8")))}
    assert not found
