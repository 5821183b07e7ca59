"""Settings and files that cannot be trained with, each with its name: the doctor must say so before training does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

from tests.fuzz.bench import NUM_QUESTIONS, Bench, setting
from tests.support.builders import make_tokenizer
from tests.support.families import small_model
from tests.support.question_files import flashrag_rows, world_questions, write_rows

Case = tuple[str, list[str]]
"""A settings file and overrides."""

_INSTRUCT: Final = "rollout.template=instruct"
_LONG: Final = "Which is the capital of Andorra, " + "of which I have asked often, " * 80 + "and where is it?"


def _set(*overrides: str, retriever: str = "dense") -> Callable[[Bench], Case]:
    return lambda bench: (bench.config(retriever), list(overrides))


def _corpus_of(content: bytes | None) -> Callable[[Bench], Case]:
    """A corpus of these bytes; None: a folder in its place."""

    def make(bench: Bench) -> Case:
        path = _written(bench.folder / "other.jsonl", content)
        return bench.config(), [setting("retrieval.corpus", str(path))]

    return make


def _questions_of(content: bytes | None) -> Callable[[Bench], Case]:
    """Questions of these bytes to train on; None: a folder in their place."""

    def make(bench: Bench) -> Case:
        for split in ("train", "dev"):
            _written(bench.folder / f"other-{split}.jsonl", content)
        return bench.config(), [setting("data.questions", f"{bench.folder}/other-{{split}}.jsonl")]

    return make


def _question_too_long(bench: Bench) -> Case:
    rows = [dict(row) for row in flashrag_rows(world_questions("train", NUM_QUESTIONS))]
    rows[-1]["question"] = _LONG
    for split in ("train", "dev"):
        write_rows(bench.folder / f"long-{split}.jsonl", rows)
    return bench.config(), [setting("data.questions", f"{bench.folder}/long-{{split}}.jsonl")]


def _model(change: Callable[[Path], object], *overrides: str) -> Callable[[Bench], Case]:
    """The mini policy with something changed in its folder."""

    def make(bench: Bench) -> Case:
        folder = bench.model("changed")
        change(folder)
        return bench.config(), [setting("model.path", str(folder)), *overrides]

    return make


def _template(template: Any) -> Callable[[Bench], Case]:
    return _model(lambda folder: _change(folder / "tokenizer_config.json", chat_template=template), _INSTRUCT)


def _encoder(make_folder: Callable[[Path], object], *overrides: str) -> Callable[[Bench], Case]:
    """A neural encoder from a folder."""

    def make(bench: Bench) -> Case:
        folder = bench.folder / "encoder"
        folder.mkdir()
        make_folder(folder)
        named = ["retrieval.encoder.kind=hf", setting("retrieval.encoder.path", str(folder))]
        return bench.config("dense_neural"), [*named, *overrides]

    return make


def _bert(folder: Path, *, pads: bool = True, poisoned: bool = False) -> None:
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=1.0,  # as far apart as trained weights are
    )
    model = BertModel(config)
    if poisoned:
        with torch.no_grad():
            model.embeddings.word_embeddings.weight.fill_(float("nan"))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not pads:
        _change(folder / "tokenizer_config.json", pad_token=None)


def _t5(folder: Path) -> None:
    tokenizer = make_tokenizer()
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    _change(folder / "config.json", architectures=["T5Model"], is_encoder_decoder=True)
    tokenizer.save_pretrained(folder)


def _one_row_less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "embed_tokens" in name)
    tensors[name] = tensors[name][:-40].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _change(folder / "config.json", vocab_size=len(tensors[name]))


def _no_decoder(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json", folder / "tokenizer_config.json"
    kept = [path.read_bytes() for path in tokenizer]
    _bert(folder)
    for path, content in zip(tokenizer, kept, strict=True):
        path.write_bytes(content)


def _another_family(folder: Path) -> None:
    """A recurrent model: siblings in one row would see each other."""
    small_model("mamba", vocab_size=2048).save_pretrained(folder)


def _change(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


def _written(path: Path, content: bytes | None) -> Path:
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    return path


def _folder_for(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


_NESTED: Final = b'{"id": "1", "contents": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"

REFUSED: Final[dict[str, Callable[[Bench], Case]]] = {
    "more questions an iteration than there are": _set("data.questions_per_iteration=9"),
    "a question longer than the longest prompt": _question_too_long,
    "a device without values": _set("model.device=meta"),
    "a device that is none": _set("model.device=zebra"),
    "layers that are no pattern": _set("model.tuning=lora", "model.lora_targets='q_proj['"),
    "layers that are not there": _set("model.tuning=lora", "model.lora_targets=['nothing']"),
    "a support above the vocabulary": _set("distillation.top_k=2049"),
    "a negative seed of the words": _set("retrieval.encoder.seed=-1"),
    "fewer vectors to train on than lists": _set(
        "retrieval.index.kind=ivf_sq", "retrieval.index.num_lists=30", "retrieval.index.num_training_vectors=5"
    ),
    "a port that is no number": _set("retrieval.urls=['http://127.0.0.1:port']", retriever="http"),
    "a retriever that does not answer": _set(retriever="http"),
    "a model that is not there": _set("model.path=/no/such/folder"),
    "a home that is nobody's": _set("model.path='~nobody/model'"),
    "questions that are not there": _set("data.questions=/no/such/{split}.jsonl"),
    "a folder for questions": _questions_of(None),
    "questions nested without end": _questions_of(_NESTED),
    "questions that are binary": _questions_of(bytes(range(256))),
    "a folder for a corpus": _corpus_of(None),
    "an empty corpus": _corpus_of(b""),
    "passages nested without end": _corpus_of(_NESTED),
    "a folder for the weights": _model(_folder_for("model.safetensors")),
    "a folder for the configuration": _model(_folder_for("config.json")),
    "a folder for the tokenizer": _model(_folder_for("tokenizer.json")),
    "a configuration of another type": _model(lambda folder: _change(folder / "config.json", hidden_size="wide")),
    "a template with a mistake": _template("{% if %}"),
    "a template that refuses": _template("{{ raise_exception('no system role') }}"),
    "a template with an unknown name": _template("{{ nothing.at.all }}"),
    "several templates and no default": _template([{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]),
    "a template without the message": _template("constant"),
    "a template that repeats the message": _template("{{ messages[0]['content'] }}{{ messages[0]['content'] }}"),
    "more tokens than embedding rows": _model(_one_row_less),
    "a model that is no decoder": _model(_no_decoder),
    "a model that the update would compute otherwise": _model(_another_family),
    "an encoder without a pad token": _encoder(lambda folder: _bert(folder, pads=False)),
    "an encoder with a decoder": _encoder(_t5),
    "an encoder of fewer positions": _encoder(_bert, "retrieval.encoder.max_length=4096"),
    "an encoder that gives NaN": _encoder(lambda folder: _bert(folder, poisoned=True)),
}
