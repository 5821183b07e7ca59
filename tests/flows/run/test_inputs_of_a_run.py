"""What a run was begun with stays: prompts are made once, and files that have changed since are named and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.doctor.doctor import start_checks
from flows.run.progress import SilentReporter
from flows.training.fork import fork_run
from flows.training.loop import train_plain
from schemas.records.ledger import StageKey
from schemas.records.rollout import Group
from schemas.settings.root import Settings
from storage.database.stage_rows import file_of
from storage.runs.run_inputs import read_run_inputs
from storage.storage import Storage
from storage.workspace import Workspace
from tests.faults.runs import RUN, quick, train
from tests.faults.test_fork import StoppedError, stop_in_the_second_iteration
from tests.support.builders import make_model

pytestmark = pytest.mark.long

TIMED = (
    "{{ strftime_now('%H:%M:%S.%f') }} {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture
def own(tmp_path: Path) -> Settings:
    return own_settings(tmp_path)


def own_settings(root: Path) -> Settings:
    """Settings whose model, questions and corpus are files below `root`, which are made when they are not there."""
    folder = root / "own"
    if not folder.exists():
        shutil.copytree(Path(quick().model.path).parent, folder)
        (folder / "model" / "chat_template.jinja").write_text(TIMED, encoding="utf-8")
    places = [f"model.path={folder}/model", f"data.questions={folder}/{{split}}.jsonl"]
    return quick(*places, f"retrieval.corpus={folder}/corpus.jsonl")


def stop(workspace: Path, settings: Settings) -> Storage:
    """Train up to the first update."""
    with pytest.raises(StoppedError):
        train(workspace, settings, stop_in_the_second_iteration)
    return Storage(Workspace(workspace))


def heads(storage: Storage, run: str, iterations: range) -> set[tuple[int, ...]]:
    """What stands before the user's words in the prompts of these iterations."""
    found = set()
    for iteration in iterations:
        record = storage.ledger.done(StageKey(run=run, iteration=iteration, stage="sample"))
        assert record is not None
        groups = storage.artifacts.read_records(file_of(record, "groups"), Group)
        found |= {group.prompt_token_ids[: group.block_offset] for group in groups}
    return found


def test_prompts_are_the_same_over_iterations_interruptions_forks_and_evaluations(
    own: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    storage = stop(workspace, own)
    kept = read_run_inputs(storage.workspace, RUN)
    assert kept is not None
    train(workspace)
    assert heads(storage, RUN, range(1, 3)) == {kept.frame.head_token_ids}
    fork_run(storage, RUN, "fork", own.model_copy(update={"iterations": 3}))
    train_plain(None, "fork", workspace, SilentReporter(), resume=True)
    assert heads(storage, "fork", range(3, 4)) == {kept.frame.head_token_ids}
    asked = ["evaluate", "--run", RUN, "--name", "answers", "--workspace", str(workspace)]
    assert run_command(asked) == 0, capsys.readouterr().err
    evaluation = read_run_inputs(storage.workspace, "answers")
    assert evaluation is not None
    assert evaluation.frame == kept.frame
    train_plain(own, "another", workspace, SilentReporter())
    assert heads(storage, "another", range(1, 3)).isdisjoint({kept.frame.head_token_ids}), "begun at another time"


def rewrite(path: Path, former: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert former in content
    path.write_text(content.replace(former, new, 1), encoding="utf-8")


def other_weights(folder: Path) -> None:
    make_model(seed=1).save_pretrained(folder / "model")


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (lambda folder: rewrite(folder / "train.jsonl", "?", "??"), r"the questions of world:train in .* have changed"),
    (lambda folder: rewrite(folder / "dev.jsonl", "?", "??"), r"the questions of world:dev in .* have changed"),
    (lambda folder: rewrite(folder / "corpus.jsonl", "a", "b"), r"has searched index \w+"),
    (other_weights, r"model\.path '.*' has changed \(model\.safetensors is another\)"),
    (lambda folder: rewrite(folder / "model" / "tokenizer.json", "\n", "\n "), r"\(tokenizer\.json is another\)"),
    (lambda folder: (folder / "model" / "chat_template.jinja").unlink(), r"\(chat_template\.jinja is gone\)"),
    (lambda folder: (folder / "model" / "code.py").touch(), r"\(code\.py is new\)"),
]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run's own files and a workspace in which it stands after its first update."""
    folder = tmp_path_factory.mktemp("stopped")
    stop(folder / "workspace", own_settings(folder))
    return folder


@pytest.mark.parametrize(("change", "complaint"), CHANGES, ids=[complaint for _, complaint in CHANGES])
def test_what_changed_is_named_and_nothing_is_done(
    change: Callable[[Path], None], complaint: str, stopped: Path, tmp_path: Path
) -> None:
    workspace, folder = stopped / "workspace", stopped / "own"
    shutil.copytree(folder, tmp_path / "former")
    before = sorted((workspace / "artifacts").rglob("*"))
    change(folder)
    with pytest.raises(UserError, match=complaint) as caught:
        train(workspace)
    is_of_tokenizer = any(name in complaint for name in ("json ", "jinja", "code"))
    if is_of_tokenizer:
        assert "put them back, or start another run with: --run NEW" in str(caught.value)
        with pytest.raises(UserError, match=r"put the files back, or start a new run with: --run NEW"):
            fork_run(Storage(Workspace(workspace)), RUN, "fork", own_settings(stopped))
    else:
        assert f"sdsearch train CONFIG --run {RUN} --fork NEW" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted((workspace / "artifacts").rglob("*")) == before
    shutil.rmtree(folder)
    shutil.move(tmp_path / "former", folder)


def test_a_fork_goes_on_with_what_changed_and_the_run_with_what_was_put_back(stopped: Path, tmp_path: Path) -> None:
    workspace, folder = stopped / "workspace", stopped / "own"
    shutil.copytree(folder, tmp_path / "former")
    for change, _ in CHANGES[:4]:
        change(folder)
    storage = Storage(Workspace(workspace))
    fork_run(storage, RUN, "fork", own_settings(stopped))
    train_plain(None, "fork", workspace, SilentReporter(), resume=True)
    assert storage.ledger.get_run("fork").status == "done"
    with pytest.raises(UserError, match=r"started with other inputs|has searched index"):
        train(workspace)
    shutil.rmtree(folder)
    shutil.move(tmp_path / "former", folder)
    train(workspace)
    assert storage.ledger.get_run(RUN).status == "done"


def test_adapters_go_with_the_weights_that_they_were_trained_on(own: Settings, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    lora = own.model_copy(update={"model": own.model.model_copy(update={"tuning": "lora", "lora_rank": 2})})
    storage = stop(workspace, lora)
    other_weights(tmp_path / "own")
    with pytest.raises(UserError, match="put them back, or start another run with: --run NEW"):
        train(workspace)
    with pytest.raises(UserError, match=r"model\.safetensors is another\), and a fork continues with its policy"):
        fork_run(storage, RUN, "fork", lora)
    assert run_command(["evaluate", "--run", RUN, "--workspace", str(workspace)]) == 2
    assert run_command(["replay", RUN, "--iterations", "1", "--workspace", str(workspace)]) == 2


def test_evaluations_and_replays_need_no_weights_that_are_in_the_checkpoint(
    own: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = tmp_path / "workspace"
    train(workspace, own)
    other_weights(tmp_path / "own")
    where = ["--workspace", str(workspace)]
    assert run_command(["evaluate", "--run", RUN, "--name", "answers", *where]) == 0
    assert run_command(["replay", RUN, "--iterations", "2", *where]) == 0
    assert run_command(["replay", RUN, "--iterations", "1", *where]) == 2, "sampled by the folder's weights"
    assert "(model.safetensors is another); put the files back" in capsys.readouterr().err
    (tmp_path / "own" / "model" / "chat_template.jinja").unlink()
    assert run_command(["evaluate", "--run", RUN, *where]) == 2
    assert "(chat_template.jinja is gone" in capsys.readouterr().err


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}", "{{ missing.name }}", TIMED * 2])
def test_a_template_that_cannot_be_used_leaves_no_run_and_is_foreseen(
    template: str, own: Settings, tmp_path: Path
) -> None:
    (tmp_path / "own" / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    workspace = tmp_path / "workspace"
    with pytest.raises(UserError, match=r"the chat template of model\.path's tokenizer: ") as caught:
        train(workspace, own)
    assert not list(workspace.glob("artifacts/run=*"))
    foreseen = start_checks(own, Workspace(workspace), [])[-1]
    assert (foreseen.name, foreseen.ok, foreseen.remedy) == ("start: template", False, str(caught.value))


def test_runs_that_kept_nothing_go_on_and_damage_is_named(own: Settings, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    storage = stop(workspace, own)
    path = workspace / "artifacts" / f"run={RUN}" / "inputs.json"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(Exception, match=r"inputs\.json is damaged .* remove it, and the run continues"):
        train(workspace)
    path.unlink()
    rewrite(tmp_path / "own" / "train.jsonl", "?", "??")
    train(workspace)
    assert storage.ledger.get_run(RUN).status == "done"
    assert json.loads(path.read_bytes())["questions"].keys() == {"world:train", "world:dev"}
