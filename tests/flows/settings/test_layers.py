"""Settings that name a base: what wins, where each value comes from, and bases that cannot be."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.settings.layers import sources
from flows.settings.load import load_settings, resolve, shipped_configs
from flows.settings.show import toml_lines


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_says_what_differs_from_its_base(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'base = "quickstart"\niterations = 3\n[distillation]\nalpha = 1.0\n')
    settings, base = load_settings(mine), load_settings("quickstart")
    assert (settings.iterations, settings.distillation.alpha) == (3, 1.0)
    assert settings.model_copy(update={"iterations": base.iterations, "distillation": base.distillation}) == base
    assert settings.distillation.warmup_iterations == base.distillation.warmup_iterations, "tables are merged by key"


def test_arrays_and_values_are_replaced_whole(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'base = "quickstart"\n[evaluation]\nmodes = ["sampled"]\n')
    assert load_settings(mine).evaluation.modes == ("sampled",)


def test_a_base_may_have_a_base_and_is_found_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "common" / "low.toml", 'base = "tiny"\nseed = 1\niterations = 2\n')
    write(tmp_path / "common" / "middle.toml", 'base = "low.toml"\nseed = 2\n')
    mine = write(tmp_path / "mine.toml", 'base = "common/middle.toml"\n[update]\nepochs = 2\n')
    monkeypatch.chdir("/")
    settings = load_settings(mine)
    assert (settings.seed, settings.iterations, settings.update.epochs) == (2, 2, 2)
    assert settings.rollout == load_settings("tiny").rollout


def test_each_value_says_where_it_comes_from(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'base = "quickstart"\niterations = 3\n')
    resolved = resolve(mine, ["update.learning_rate=1e-4"])
    found = sources(resolved.layers, resolved.settings)
    assert found["iterations"] == mine
    assert found["update.learning_rate"] == "--set"
    assert found["update.rollouts_per_step"] == "quickstart"
    assert found["update.epochs"] == "default"
    alone = resolve(write(tmp_path / "mini.toml", '[model]\npath = "mini"\n'))
    assert sources(alone.layers, alone.settings)["rollout.template"] == "model mini"


def test_another_kind_leaves_out_what_only_the_base_s_kind_has(tmp_path: Path) -> None:
    low = write(
        tmp_path / "low.toml",
        'base = "tiny"\n[retrieval]\nkind = "dense"\ncorpus = "wiki"\nnum_passages = 5\n'
        '[retrieval.encoder]\nkind = "hf"\npath = "e5"\n',
    )
    mine = write(tmp_path / "mine.toml", 'base = "low.toml"\n[retrieval]\nkind = "bm25"\n')
    retrieval = load_settings(mine).retrieval
    assert (retrieval.kind, retrieval.corpus, retrieval.num_passages) == ("bm25", "wiki", 5)
    assert load_settings(low).retrieval.encoder.path == "e5"
    own = write(tmp_path / "own.toml", 'base = "tiny"\n[retrieval]\nkind = "bm25"\nvector_dtype = "float16"\n')
    with pytest.raises(UserError, match=r"unknown setting 'retrieval.vector_dtype': kind = 'bm25' has none"):
        load_settings(own)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("quikstart", "did you mean 'quickstart'"),
        ("gone/low.toml", "no settings file 'gone/low.toml'"),
        ("mine.toml", "base leads round in a circle"),
        ("other.toml", "base leads round in a circle"),
        ("", "base: expected the name of shipped settings or the path of a file, got ''"),
        (3, "base: expected the name of shipped settings or the path of a file, got 3"),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path: Path, base: object, message: str) -> None:
    written = f'"{base}"' if isinstance(base, str) else base
    write(tmp_path / "other.toml", 'base = "mine.toml"\n')
    with pytest.raises(UserError, match=message) as error:
        load_settings(write(tmp_path / "mine.toml", f"base = {written}\n"))
    assert len(str(error.value).splitlines()) == 1


def test_an_error_names_the_file_and_its_bases(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.toml", 'base = "quickstart"\n[update]\nlearning_rat = 1\n')
    with pytest.raises(UserError, match=r"mine.toml \(base: quickstart\): unknown setting 'update.learning_rat'"):
        load_settings(mine)


def test_the_7b_settings_differ_from_the_3b_ones_in_the_model_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "diff", "paper_3b", "paper_7b"]) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines() if "Qwen" in line] == [
        ["model.path", '"Qwen/Qwen2.5-3B-Instruct"', '"Qwen/Qwen2.5-7B-Instruct"']
    ]
    assert sum(line.startswith("  ") and "─" not in line for line in printed.splitlines() if line.strip()) == 2
    text = (files("flows") / "configs" / "paper_7b.toml").read_text(encoding="utf-8")
    assert tomllib.loads(text).keys() == {"base", "model"}


def test_what_is_shown_as_toml_is_the_same_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in shipped_configs():
        assert run_command(["config", "show", name, "--format", "toml"]) == 0
        shown = write(tmp_path / f"{name}.toml", capsys.readouterr().out)
        assert load_settings(shown) == load_settings(name)
    odd = {"data": {"sets": {"nq": 'a "quoted"\\place\n', "x.y": "é"}}, "a": [True, 1e-6, "b"]}
    assert tomllib.loads("\n".join(toml_lines(odd))) == odd


def test_what_is_shown_is_what_differs_from_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["config", "show", "tiny", "--set", "seed=7"]) == 0
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = {name: rest for name, *rest in filter(None, cells)}
    assert rows["seed"] == ["7", "--set"]
    assert rows["iterations"] == ["3", "tiny"]
    assert "update.epochs" not in rows
    assert run_command(["config", "show", "tiny", "--all"]) == 0
    assert "update.epochs" in capsys.readouterr().out
    assert run_command(["config", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["paper_7b"])
