"""Plans: figures against other estimates, against a run that was measured, and marked as what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows.app import run_command
from flows.console.errors import UserError
from flows.plan.measured import folder_bytes
from flows.plan.show import format_figure
from flows.plan.work import make_plan
from schemas.records.ledger import StageKey
from schemas.records.plan import Figure, Plan
from storage.runs.artifacts import ArtifactStore
from storage.runs.ledger import Ledger
from storage.workspace import Workspace

ONE_THREAD = ["model.torch_threads=1"]


def plan(folder: Path, config: str, *overrides: str, gpu: str | None = None, gpus: int | None = None) -> Plan:
    return make_plan(config, overrides, folder, gpu, gpus)


@pytest.mark.parametrize(
    ("config", "card_gb", "learn_s"), [("paper_3b", (18, 23), (45, 90)), ("paper_7b", (36, 46), (105, 200))]
)
def test_the_paper_on_eight_cards_is_as_it_was_reckoned_elsewhere(
    tmp_path: Path, config: str, card_gb: tuple[float, float], learn_s: tuple[float, float]
) -> None:
    """A reckoning of its own, for 256 x 5 rollouts of 3,000 tokens: 20 and 41 GB a card, 50 to 81 and 115 to 184 s."""
    made = plan(tmp_path, config, gpu="h100", gpus=8)
    assert made.workload["rollouts"].value == 1280
    assert made.workload["learnt tokens"].value == pytest.approx(1280 * 3000, rel=0.02)
    assert card_gb[0] < made.memory["card of the other ranks"].value / 1e9 < card_gb[1]
    assert learn_s[0] < made.seconds["teacher"].value + made.seconds["update"].value < learn_s[1]
    assert made.fits
    assert made.memory["weights"].source == "guessed", "the model is not here"


def test_a_copy_that_is_spread_over_more_ranks_takes_less_of_each(tmp_path: Path) -> None:
    def card(*overrides: str) -> float:
        return plan(tmp_path, "paper_7b", *overrides, gpu="H100", gpus=8).memory["card"].value

    full, hybrid, whole = (
        card(),
        card("distributed.sharding=hybrid", "distributed.shard_ranks=4"),
        card("distributed.sharding=replicate"),
    )
    assert full < hybrid < whole
    assert not plan(tmp_path, "paper_7b", "distributed.sharding=replicate", gpu="h100", gpus=8).fits
    alone = plan(tmp_path, "paper_7b", gpu="h100")
    assert "gathered" not in alone.memory
    assert alone.ranks == 1
    assert alone.disk["checkpoint"] == plan(tmp_path, "paper_7b", gpu="h100", gpus=8).disk["checkpoint"]


def test_what_is_sampled_in_this_process_counts_and_takes_turns_with_the_update(tmp_path: Path) -> None:
    """By hand: 200 conversations of 1,280 slots, keys and values of 4 layers, 128 wide, in 4 bytes."""
    planned = plan(tmp_path, "quickstart").memory
    cache = 200 * 1280 * 2 * 4 * 128 * 4
    assert cache < planned["a sampled batch"].value < 1.3 * cache
    resident = sum(planned[name].value for name in ("weights", "optimiser", "reference", "program"))
    assert planned["machine"].value == pytest.approx(resident + planned["a sampled batch"].value)
    few = plan(tmp_path, "quickstart", "evaluation.num_questions=8", "rollout.questions_per_batch=2").memory
    assert few["machine"].value == pytest.approx(resident + few["gradients"].value + few["activations"].value)
    every = plan(tmp_path, "quickstart", "evaluation.num_questions=0").memory
    assert every["a sampled batch"].value == pytest.approx(256 / 200 * planned["a sampled batch"].value, rel=1e-3)
    ranks = ("distributed.ranks=2",)
    more = plan(tmp_path, "quickstart", *ranks).memory["machine"].value
    assert more - plan(tmp_path, "quickstart", *ranks, "sampling.kind=vllm").memory["machine"].value == pytest.approx(
        planned["a sampled batch"].value
    )
    assert "a sampled batch" not in plan(tmp_path, "quickstart", "sampling.kind=vllm").memory


def test_more_cards_learn_faster_and_sample_as_fast(tmp_path: Path) -> None:
    one, eight = (plan(tmp_path, "paper_3b", gpu="h100", gpus=gpus).seconds for gpus in (1, 8))
    assert one["update"].value == pytest.approx(8 * eight["update"].value)
    assert one["sample"] == eight["sample"], "sampling stays on one device"
    assert plan(tmp_path, "paper_3b", gpu="a100").seconds["update"].value > 3 * one["update"].value


@pytest.mark.parametrize(
    ("config", "gpu", "overrides", "says"),
    [
        ("paper_3b", "h10", [], "no figures of a card 'h10'; did you mean 'h100'"),
        ("paper_3b", None, [], "and this machine has none; name a card to plan for: --gpu a100 | h100"),
        ("tiny", "h100", ["model.path=unknown"], "its name tells no size"),
    ],
)
def test_what_nothing_is_known_of_is_refused(
    tmp_path: Path, config: str, gpu: str | None, overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says.replace("|", r"\|")):
        plan(tmp_path, config, *overrides, gpu=gpu)


def test_figures_have_three_digits_and_a_unit() -> None:
    figures = [(1.2345e10, "bytes"), (999, "bytes"), (12.345, "seconds"), (3725.0, "seconds"), (12345.6, "tokens")]
    shown = [format_figure(Figure(value=value, unit=unit, source="guessed")) for value, unit in figures]  # type: ignore[arg-type]
    assert shown == ["12.3 GB", "0.999 kB", "12.3 s", "1 h 2 min", "12,346"]


# Not ru_maxrss: it begins with the size of the process that starts this one.
PEAK = (
    "import re, sys; from flows.app import run_command; code = run_command(sys.argv[1:]); "
    "said = open('/proc/self/status').read(); print('peak', int(re.search(r'VmHWM:\\s+(\\d+)', said)[1]) * 1024); "
    "sys.exit(code)"
)


def peak_of(*words: str) -> float:
    """Return the largest memory of a process that carries out a command, bytes."""
    done = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.rsplit("peak ", 1)[1])


@pytest.mark.long
def test_a_batch_that_is_sampled_is_within_the_plan(tmp_path: Path) -> None:
    """An evaluation of 200 questions at one time takes more than an update; bounds: 0.5 to 1 of the figure."""
    lines = [*ONE_THREAD, "iterations=1", "evaluation.modes=['greedy']"]
    planned = plan(tmp_path, "quickstart", *lines).memory
    assert planned["a sampled batch"].value > 2 * planned["activations"].value
    sets = [word for line in lines for word in ("--set", line)]
    peak = peak_of("train", "quickstart", "--run", "q", "--no-prefect", "--workspace", str(tmp_path), *sets)
    assert 0.5 < peak / planned["machine"].value < 1.0
    assert peak > planned["machine"].value - planned["a sampled batch"].value, "without the batch it were too small"


@pytest.mark.slow
@pytest.mark.long
def test_a_run_is_within_its_plan_and_measures_the_next_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bounds: the peak of memory is 0.4 to 1 of its figure, the disk 0.7 to 1.05 of its own."""
    before = plan(tmp_path, "tiny", *ONE_THREAD)
    assert not before.measured_on
    assert {figure.source for figure in before.seconds.values()} == {"guessed"}
    assert before.disk["checkpoint"].source == before.memory["weights"].source == "computed"
    train = ["train", "tiny", "--run", "r", "--no-prefect", "--workspace", str(tmp_path), "--set", *ONE_THREAD]
    peak = peak_of(*train)
    assert 0.4 < peak / before.memory["machine"].value < 1.0
    taken = sum(folder_bytes(tmp_path / name) for name in ("artifacts", "checkpoints"))
    taken += (tmp_path / "sdsearch.duckdb").stat().st_size
    (planned,) = [figure.value for name, figure in before.disk.items() if name.startswith("run")]
    assert 0.7 < taken / planned < 1.05

    after = plan(tmp_path, "tiny", *ONE_THREAD, "iterations=10", "seed=3")
    assert after.measured_on == "r"
    ledger = Ledger(ArtifactStore(Workspace(tmp_path)))
    durations = [ledger.done(StageKey(run="r", iteration=n, stage="update")) for n in (1, 2, 3)]
    mean = sum(record.duration_s for record in durations if record) / 3
    assert after.seconds["update"].source == "measured"
    assert after.seconds["update"].value == pytest.approx(mean)
    assert after.disk["checkpoint"].source == after.disk["records of an iteration"].source == "measured"
    assert after.disk["checkpoint"].value == pytest.approx(before.disk["checkpoint"].value, rel=0.05)
    # An evaluation at the start, one every second iteration, none besides at the end.
    run = 10 * after.seconds["iteration"].value + 6 * after.seconds["an evaluation"].value
    assert after.seconds["run"].value == pytest.approx(run)
    assert after.workload["learnt tokens"].source == "measured"

    on_card = plan(tmp_path, "tiny", *ONE_THREAD, gpu="h100")
    assert on_card.measured_on == "", "another device is another setting"
    assert not plan(tmp_path, "tiny", *ONE_THREAD, "rollout.group_size=8").measured_on
    capsys.readouterr()
    assert run_command(["plan", "tiny", "--set", *ONE_THREAD, "--json", "--workspace", str(tmp_path)]) == 0
    assert Plan.model_validate_json(capsys.readouterr().out).measured_on == "r"
    assert run_command(["plan", "tiny", "--set", *ONE_THREAD, "--workspace", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "measured: means of run r, which had these settings" in said
    assert "is enough" in said
