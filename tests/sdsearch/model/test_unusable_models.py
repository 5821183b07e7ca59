"""Folders that hold no policy: each is refused in one line that says what is wrong and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    FalconConfig,
    FalconForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from flows.run.policy import check_device
from schemas.errors import UserError
from sdsearch.model.policy import check_tokens, load_model, load_tokenizer, trainable_parameters, with_lora
from tests.support.builders import make_model, make_tokenizer

SMALL = {"d_model": 16, "vocab_size": 420}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy as save_pretrained writes it."""
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    return message


def config_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def weights_with(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def in_its_place(name: str, content: bytes | None) -> Callable[[Path], None]:
    """Other bytes in the place of a file; None: a folder, which is as unreadable to root as to anyone."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir() if content is None else (folder / name).write_bytes(content)

    return change


LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        in_its_place("model.safetensors", b""),
        in_its_place("model.safetensors", None),
        in_its_place("config.json", b"{"),
        in_its_place("config.json", b"[]"),
        in_its_place("config.json", None),
        config_with(model_type="no such family"),
        config_with(hidden_size="wide"),
        config_with(num_attention_heads=0),
        config_with(intermediate_size=64),
        weights_with(lambda tensors: tensors.update({LAYER: torch.zeros(3, 3)})),
    ],
)
def test_files_that_are_no_model(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    message = refusal(lambda: load_model(folder, "float32"))
    assert message.startswith(f"no model could be read from '{folder}': ")
    assert "point model.path at a folder" in message


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", None])
def test_files_that_are_no_tokenizer(folder: Path, content: bytes | None) -> None:
    in_its_place("tokenizer.json", content)(folder)
    assert f"no tokenizer could be read from '{folder}'" in refusal(lambda: load_tokenizer(folder))


def test_weights_that_are_missing_are_not_drawn_at_random(folder: Path) -> None:
    weights_with(lambda tensors: tensors.pop(LAYER))(folder)
    message = refusal(lambda: load_model(folder, "float32"))
    assert f"lacks 1 of the weights of LlamaForCausalLM, such as {LAYER}" in message


def test_models_that_are_no_decoder(tmp_path: Path) -> None:
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForConditionalGeneration(BartConfig(**SMALL, **sizes, **heads))
    t5 = T5ForConditionalGeneration(T5Config(**SMALL, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    for name, model in {"bart": bart, "t5": t5}.items():
        model.save_pretrained(tmp_path / name)
        message = refusal(lambda name=name: load_model(tmp_path / name, "float32"))
        assert f"has an encoder and a decoder ({name})" in message


def test_a_class_that_knows_its_own_attentions_alone(tmp_path: Path) -> None:
    config = FalconConfig(vocab_size=420, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    FalconForCausalLM(config).save_pretrained(tmp_path)
    assert "attends by code of its own" in refusal(lambda: load_model(tmp_path, "float32"))


@pytest.mark.parametrize(("written", "refused"), [("", False), ("<image> {{ messages }}", True)])
def test_a_special_token_that_nothing_writes_needs_no_embedding(folder: Path, written: str, refused: bool) -> None:
    """Gemma 3's text models have one token more, for images."""
    tokenizer = load_tokenizer(folder)
    model = make_model(vocab_size=len(tokenizer))
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.chat_template = written
    if refused:
        assert "'<image>'" in refusal(lambda: check_tokens(model, tokenizer))
    else:
        check_tokens(model, tokenizer)


@pytest.mark.parametrize("targets", ["q_proj", "self_attn.q_proj", r".*\.q_proj", ["q_proj"]])
def test_layers_by_one_name_by_pattern_and_by_list(targets: str | list[str]) -> None:
    names = trainable_parameters(with_lora(make_model(), 2, 4.0, targets, seed=0))
    assert len(names) == 4, "an A and a B in each of two layers"
    assert all("q_proj" in name for name in names)


@pytest.mark.parametrize("targets", ["q_proj[", "(", "nothing", "q_proj,v_proj", "", [], [""]])
def test_layers_that_are_none(targets: str | list[str]) -> None:
    message = refusal(lambda: with_lora(make_model(), 2, 4.0, targets, seed=0))
    assert f"model.lora_targets {targets!r} of rank 2: " in message
    assert "name some of down_proj, gate_proj" in message


@pytest.mark.parametrize("device", ["meta", "zebra", "cuda:99", "", "cpu:", "vulkan", "mps"])
def test_devices_that_compute_nothing_here(device: str) -> None:
    message = refusal(lambda: check_device(device))
    assert f"model.device '{device}' cannot be used on this machine: " in message
    assert "set model.device = 'cpu'" in message


def test_a_copy_of_the_policy_is_read(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert load_model(tmp_path / "copy", "float32").num_parameters() == make_model().num_parameters()
    check_device("cpu")
