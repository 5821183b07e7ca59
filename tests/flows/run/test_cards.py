"""Which cards sample and which train: the environment and the device that each process is given. No card is needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

import sdsearch.sampling.vllm_engine as engine_module
from flows.console.errors import UserError
from flows.run.cards import engine_cards, free_cached, rank_cards
from flows.run.records import new_run
from flows.run.sampler import VllmPolicySampler
from flows.run.stage_inputs import input_hash
from flows.settings.load import load_settings
from flows.training.job import open_storage
from flows.training.loop import _known_run
from flows.training.ranks import agent as agents
from flows.training.ranks import serve
from flows.training.ranks.agent import Agent, AgentPlan
from flows.training.ranks.attendance import Attendance, sign_in
from flows.training.ranks.launch import RankPlace, Ranks
from flows.training.ranks.messages import ANSWER, COMMAND, DONE
from flows.training.stages.sample import SAMPLE
from flows.training.stages.update import UPDATE
from schemas.records.run_kind import TrainingKind
from schemas.settings.cards import are_apart, engine_sleeps, trainer_cards
from schemas.settings.root import Settings
from schemas.settings.sampling import VllmSamplerSettings
from sdsearch.sampling.stopping import TurnEnds
from sdsearch.sampling.vllm_engine import EngineOptions, VllmEngine
from sdsearch.sampling.vllm_turns import EventLoopThread
from tests.support.builders import make_tokenizer

VLLM = ("sampling.kind=vllm", "model.device=cuda", "sampling.sleep_while_training=true")
TWO_RANKS = (*VLLM, "distributed.ranks=2")
TELL = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))"


def settings_of(*lines: str) -> Settings:
    return load_settings("tiny", list(lines))


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,GPU-7f")


@pytest.mark.parametrize(
    ("lines", "trains", "apart"),
    [
        (VLLM, (0,), False),
        ((*VLLM, "sampling.devices=[0]"), (0,), False),
        ((*VLLM, "sampling.devices=[1]"), (0,), True),
        ((*VLLM, "model.device=cuda:1", "sampling.devices=[1]"), (1,), False),
        (TWO_RANKS, (0, 1), False),
        ((*TWO_RANKS, "sampling.devices=[1]"), (0, 1), False),
        ((*TWO_RANKS, "sampling.devices=[2]"), (0, 1), True),
        ((*TWO_RANKS, "distributed.devices=[3,2]"), (3, 2), False),
        ((*TWO_RANKS, "distributed.devices=[3,2]", "sampling.devices=[2]"), (3, 2), False),
        (
            (*TWO_RANKS, "distributed.devices=[3,2]", "sampling.devices=[1,0]", "sampling.data_parallel_size=2"),
            (3, 2),
            True,
        ),
        ((*VLLM, "model.device=cpu", "sampling.devices=[1]"), (), False),
    ],
)
def test_an_engine_makes_room_where_it_shares_a_card_with_the_trainer(
    lines: tuple[str, ...], trains: tuple[int, ...], apart: bool
) -> None:
    settings = settings_of(*lines)
    assert trainer_cards(settings) == trains
    assert are_apart(settings) is apart
    assert engine_sleeps(settings) is not apart


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((*TWO_RANKS, "distributed.devices=[1,1]"), "names a card twice"),
        ((*VLLM, "sampling.devices=[1,1]", "sampling.data_parallel_size=2"), "names a card twice"),
        ((*TWO_RANKS, "distributed.devices=[1]"), "name distributed.ranks / nodes cards"),
        ((*TWO_RANKS, "distributed.devices=[1,2,3]"), "name distributed.ranks / nodes cards"),
        ((*VLLM, "sampling.devices=[1,2]"), "name tensor_parallel_size x data_parallel_size cards"),
        (
            (*VLLM, "sampling.devices=[1,2,3]", "sampling.tensor_parallel_size=2", "sampling.data_parallel_size=2"),
            "name tensor_parallel_size x data_parallel_size cards",
        ),
        ((*TWO_RANKS, "distributed.devices=[0,-1]"), "distributed.devices"),
    ],
)
def test_lists_that_do_not_fit_are_one_line(lines: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as refused:
        settings_of(*lines)
    assert words in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_two_machines_have_as_many_cards_each(four_cards: None) -> None:
    two = ("distributed.nodes=2", "distributed.endpoint=one:29400", "distributed.ranks=4", "distributed.devices=[3,1]")
    assert rank_cards(settings_of("model.device=cuda", *two)) == ("GPU-7f", "5")


def test_numbers_are_those_of_the_cards_that_the_run_s_process_sees(
    four_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(*TWO_RANKS, "distributed.devices=[3,0]", "sampling.devices=[1]")
    assert rank_cards(settings) == ("GPU-7f", "4")
    assert engine_cards(settings) == ("5",)
    assert rank_cards(settings_of(*TWO_RANKS)) == engine_cards(settings_of(*TWO_RANKS)) == ()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with pytest.raises(UserError, match=r"^distributed\.devices names card 3, and this process sees 3 CUDA devices"):
        rank_cards(settings)
    assert rank_cards(settings_of("distributed.ranks=2", "distributed.devices=[3,0]")) == (), "no card on a CPU"


def test_the_lists_change_no_hash_and_a_run_goes_on_with_others(tmp_path: Path) -> None:
    plain = settings_of(*TWO_RANKS)
    other = settings_of(*TWO_RANKS, "distributed.devices=[3,2]", "sampling.devices=[1]")
    assert plain.content_hash() == other.content_hash()
    for stage in (SAMPLE, UPDATE):
        assert input_hash(plain, stage, [], "") == input_hash(other, stage, [], "")
    storage = open_storage(tmp_path)
    storage.create_run(record := new_run("r", plain, TrainingKind()))
    assert _known_run(storage, "r", plain) == storage.find_run("r")
    goes_on = _known_run(storage, "r", other)
    assert goes_on is not None
    assert Settings.model_validate_json(goes_on.settings_json) == other
    assert goes_on.settings_hash == record.settings_hash


def options_of(settings: Settings, folder: Path) -> EngineOptions:
    sampling = settings.sampling
    assert isinstance(sampling, VllmSamplerSettings)
    policy: Any = SimpleNamespace(base_folder="/base", max_context_tokens=512)
    sampler = VllmPolicySampler(settings, "r", folder)
    try:
        return sampler._engine_options(sampling, policy, TurnEnds(make_tokenizer(), frozenset({1}), frozenset(), {}))
    finally:
        sampler.close()


def test_an_engine_is_told_its_cards_and_can_sleep_only_beside_the_trainer(four_cards: None, tmp_path: Path) -> None:
    beside = options_of(settings_of(*VLLM), tmp_path)
    assert (beside.cards, beside.enable_sleep_mode) == ((), True)
    apart = options_of(settings_of(*VLLM, "sampling.devices=[3]"), tmp_path)
    assert (apart.cards, apart.enable_sleep_mode) == (("GPU-7f",), False)


@pytest.mark.parametrize("former", ["4,5,6,7", None])
def test_the_processes_of_an_engine_see_its_cards_and_this_one_all(
    former: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if former is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", former)
    seen: list[str] = []

    async def start(options: EngineOptions) -> Any:
        seen.append(subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, check=True).stdout)

    monkeypatch.setattr(engine_module, "check_installed", lambda: None)
    monkeypatch.setattr(engine_module, "_open", start)
    monkeypatch.setenv(engine_module.OWNER_VARIABLE, "")
    loop = EventLoopThread()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    options = options_of(settings_of(*VLLM, "sampling.devices=[2]"), tmp_path)
    if former is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    VllmEngine.open(options, loop)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == former
    VllmEngine.open(options_of(settings_of(*VLLM), tmp_path), loop)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == former
    loop.close()
    assert [line.strip() for line in seen] == ["6", str(former)]


@pytest.mark.parametrize(("cards", "seen"), [("GPU-7f,4", "GPU-7f,4"), ("", "4,5,6,GPU-7f")])
def test_a_rank_sees_the_ranks_cards_before_torch_is_loaded(
    cards: str, seen: str, four_cards: None, tmp_path: Path
) -> None:
    shim = (
        "import sys, types\n"
        "module = types.ModuleType('flows.training.ranks.serve')\n"
        "def serve(*_):\n"
        "    import os\n"
        "    print(os.environ['CUDA_VISIBLE_DEVICES'], 'torch' in sys.modules)\n"
        "module.serve = serve\n"
        "sys.modules[module.__name__] = module\n"
    )
    (tmp_path / "sitecustomize.py").write_text(shim)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [str(os.getpid()), "here:1", str(tmp_path), "r", "", cards]
    told = subprocess.run(
        [sys.executable, "-m", "flows.training.ranks.rank", *words],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert told.stdout.split() == [seen, "False"]


def test_an_agent_hands_its_cards_to_its_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []

    def launch(config: Any, program: str) -> Any:
        return lambda *words: given.append(words)

    monkeypatch.setattr(agents, "elastic_launch", launch)
    distributed = settings_of(*TWO_RANKS).distributed
    agent = Agent(AgentPlan(distributed, "here:1", "here", tmp_path, "r", "", ("GPU-7f", "4")))
    agent.join(60)
    assert agent.ended is None or not isinstance(agent.ended, ChildFailedError)
    assert given == [("-m", agents.MODULE, str(os.getpid()), "here:1", str(tmp_path), "r", "", "GPU-7f,4")]


def test_a_rank_computes_on_the_card_of_its_local_number(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(serve.dist, "init_process_group", lambda backend, timeout: chosen.append(backend))
    monkeypatch.setattr(serve, "sign_in", lambda store, number: chosen.append(number))
    settings = settings_of(*TWO_RANKS, "distributed.devices=[3,2]")
    serve._open_group(settings, SimpleNamespace())  # type: ignore[arg-type]
    assert chosen == [1, 5, "cuda:nccl,cpu:gloo"], "a rank signs in when it has its card"
    assert serve._own_device(settings).model.device == "cuda:1"


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[Ranks]:
    """Two ranks that have started and are at their first command; they are no processes."""
    settings = settings_of("distributed.ranks=2")
    ranks = Ranks(settings, RankPlace(tmp_path, "r", None), lambda *_: None)
    ranks.listen()
    assert ranks._store is not None
    agent = SimpleNamespace(
        endpoint="here:1", is_alive=lambda: True, stopped=lambda: None, kill=lambda: None, join=lambda seconds: None
    )
    ranks._agent = agent  # type: ignore[assignment]
    ranks._attendance = Attendance(ranks._store, settings.distributed)
    for number in range(2):
        sign_in(ranks._store, number)
    yield ranks
    ranks.stop("")


def test_a_command_is_done_when_every_rank_has_let_go_of_its_memory(at_work: Ranks) -> None:
    """The engine that wakes next is on the cards of all."""
    store = at_work._store
    assert store is not None
    answered: list[Any] = []
    reading = threading.Thread(target=lambda: answered.append(at_work.read(0, [])), daemon=True)
    reading.start()
    store.set(f"{ANSWER}/0", "[]")
    store.set(f"{DONE}/0/0", "")
    # Not store.wait: it keeps the store's one connection, which the other thread needs for what is waited for.
    while not store.check([f"{COMMAND}/0"]):
        time.sleep(0.01)
    reading.join(0.5)
    assert not answered, "the second rank is not done"
    store.set(f"{DONE}/0/1", "")
    reading.join()
    assert answered == [[]]


def test_memory_is_given_back_only_where_cuda_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    free_cached()
    assert not emptied
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    free_cached()
    assert emptied == [True]
