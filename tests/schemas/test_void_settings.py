"""Settings that cannot act beside others: a note where they were given, and no difference between two trainings."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.inspect.browse import print_run
from flows.settings.load import load_settings, shipped_configs
from flows.training.job import open_storage
from schemas.settings.root import Settings
from schemas.settings.rules import notes
from schemas.settings.void import VOID, effective
from tests.support.records import make_run

DISTILS = "distillation.warmup_iterations=0"
# Settings under which something is void -> what is void there -> what of the note is told; "" where none is.
CASES = [
    (["distillation.enabled=false"], "hindsight.labels=none", "distillation.enabled is false"),
    (["distillation.enabled=false"], "hindsight.masking=none", "distillation.enabled is false"),
    (["distillation.enabled=false"], "distillation.alpha=0.5", ""),
    (["distillation.warmup_iterations=3"], "distillation.positions=completion", ""),
    (["distillation.enabled=false"], "update.gradient_parts_every=2", "the gradient has one part"),
    ([DISTILS, "distillation.support=full"], "distillation.top_k=7", "compares the whole vocabulary"),
    ([DISTILS, "distillation.support=full"], "distillation.tail=renormalise", "compares the whole vocabulary"),
    ([DISTILS, "hindsight.labels=none"], "hindsight.rho=0.5", "no block shows a label"),
    ([DISTILS, "hindsight.masking=current_documents"], "hindsight.label_metric=em", "no block shows a label"),
    ([DISTILS, "distillation.form=advantage"], "distillation.divergence=mse", "of the sampled tokens alone"),
    ([DISTILS], "grpo.constant_tokens=99", "grpo.aggregation is not 'constant'"),
    (["grpo.old_logprobs=trainer", "update.rollouts_per_step=16"], "grpo.clip_low=0.1", "every ratio is 1"),
    ([DISTILS], "model.lora_rank=4", "model.tuning is 'full'"),
    ([DISTILS], "model.lora_targets=q_proj", "model.tuning is 'full'"),
    (["data.train=['world:train']"], "data.train_split=dev", "data.train names the splits"),
    ([DISTILS], "retrieval.cache_max_entries=9", "retrieval.cache is false"),
    ([DISTILS], "evaluation.every=50", "start and end alone are evaluated"),
    (["evaluation.num_questions=0"], "evaluation.seed=3", "all questions are evaluated on"),
    (["reward.name=tests.support.plugging:length"], "reward.metric=em", "reward.name is another"),
    (["reward.name=tests.support.plugging:length"], "reward.format_bonus=0.5", "reward.name is another"),
    ([DISTILS], "hindsight.max_block_tokens=1024", ""),
    (["distillation.enabled=false"], "hindsight.contrast=flipped", "distillation.enabled is false"),
    (["distillation.enabled=false"], "hindsight.memory=2", "distillation.enabled is false"),
    ([DISTILS], "distributed.timeout_s=9.0", "distributed.ranks is 1"),
    ([DISTILS, "distributed.ranks=4"], "distributed.endpoint=one:29400", "distributed.nodes is 1"),
    ([DISTILS, "distributed.ranks=4"], "distributed.shard_ranks=4", "distributed.sharding is not 'hybrid'"),
    ([DISTILS], "distributed.devices=[1]", "distributed.ranks is 1"),
    ([DISTILS, "distributed.ranks=2"], "distributed.devices=[1,0]", "model.device is no CUDA device"),
    ([DISTILS, "sampling.kind=vllm"], "sampling.devices=[1]", "model.device is no CUDA device"),
    (
        [DISTILS, "sampling.kind=vllm", "model.device=cuda", "sampling.devices=[1]"],
        "sampling.sleep_while_training=true",
        "has none of the cards that train",
    ),
    ([DISTILS], "distillation.ema_decay=0.5", "distillation.teacher is not 'ema'"),
    ([DISTILS], "rollout.retries_use=distillation", "rollout.retries is 0"),
    ([DISTILS], "grpo.resample_rounds=5", "grpo.filter is not 'resample'"),
]
# The same settings act where nothing stands in their way.
ACTING = [
    (["distillation.enabled=false", "rollout.retries=1"], "hindsight.rho=0.5"),
    ([DISTILS, "hindsight.labels=none", "rollout.retries=1"], "hindsight.rho=0.5"),
    ([DISTILS], "hindsight.labels=none"),
    ([DISTILS], "hindsight.rho=0.5"),
    ([DISTILS, "hindsight.labels=none", "hindsight.members=correct_only"], "hindsight.rho=0.5"),
    ([DISTILS, "hindsight.labels=none", "hindsight.homogeneous=skip"], "hindsight.rho=0.5"),
    ([DISTILS, "hindsight.labels=none", "hindsight.memory=1"], "hindsight.rho=0.5"),
    ([DISTILS, "hindsight.labels=none", "hindsight.own_query=paraphrase"], "hindsight.rho=0.5"),
    ([DISTILS], "distillation.top_k=7"),
    ([DISTILS, "grpo.filter=resample"], "grpo.resample_rounds=5"),
    ([DISTILS], "grpo.filter=zero_advantage"),
    ([DISTILS, "hindsight.labels=none", "distillation.gate=outcome"], "hindsight.rho=0.5"),
    (
        [DISTILS, "hindsight.labels=none", "distillation.schedule={kind='retire', gap='log_ratio'}"],
        "hindsight.label_metric=em",
    ),
    ([DISTILS], "distillation.form=advantage"),
    ([DISTILS], "distillation.gate=outcome"),
    ([DISTILS], "distillation.clip=own"),
    ([DISTILS], "distillation.schedule={kind='linear'}"),
    ([DISTILS], "distillation.alpha=0.5"),
    ([DISTILS], "distillation.enabled=false"),
    ([DISTILS, "distillation.teacher=ema"], "distillation.ema_decay=0.5"),
    (["grpo.aggregation=constant"], "grpo.constant_tokens=99"),
    (["grpo.old_logprobs=trainer"], "grpo.clip_low=0.1"),
    (["grpo.old_logprobs=trainer", "update.rollouts_per_step=16", "update.epochs=2"], "grpo.clip_low=0.1"),
    (["model.tuning=lora"], "model.lora_rank=4"),
    ([DISTILS, "hindsight.masking=none"], "hindsight.max_block_tokens=1024"),
]


def loaded(*lines: str) -> Settings:
    return load_settings("tiny", list(lines))


@pytest.mark.parametrize(("where", "given", "told"), CASES)
def test_what_cannot_act_is_told_and_makes_no_other_training(where: list[str], given: str, told: str) -> None:
    plain, other = loaded(*where), loaded(*where, given)
    assert plain != other
    assert effective(plain) == effective(other)
    found = [note for note in notes(other) if given.partition("=")[0] in note and "no effect" in note]
    assert len(found) == bool(told)
    assert told in "".join(found)
    assert not [note for note in notes(plain) if given.partition("=")[0] in note], "a default needs no note"


@pytest.mark.parametrize(("where", "given"), ACTING)
def test_what_acts_makes_another_training_and_no_note(where: list[str], given: str) -> None:
    plain, other = loaded(*where), loaded(*where, given)
    assert effective(plain) != effective(other)
    assert not any(given.partition("=")[0] in note for note in notes(other) if "no effect" in note)


def test_all_warm_up_is_plain_grpo() -> None:
    warm = loaded("distillation.warmup_iterations=3")
    assert warm.only_warms_up
    assert effective(warm) == effective(loaded("distillation.enabled=false"))
    assert any("plain GRPO to its end; lower it, or raise iterations" in note for note in notes(warm))
    assert not loaded("distillation.warmup_iterations=2").only_warms_up
    assert not loaded("distillation.enabled=false").only_warms_up


def test_every_rule_has_a_case_and_no_shipped_settings_have_a_note() -> None:
    assert {name for void in VOID if void.because for name in void.names} >= {
        given.partition("=")[0] for _, given, told in CASES if told
    }
    for void in VOID:
        assert any(
            void.applies(loaded(*where, given)) for where, given, _ in CASES if given.partition("=")[0] in void.names
        )
    assert all(notes(load_settings(config)) == [] for config in shipped_configs())


@pytest.mark.parametrize(("warmup", "plain"), [(3, True), (2, False)])
def test_show_says_that_a_run_only_warms_up(tmp_path: Path, warmup: int, plain: bool) -> None:
    settings = loaded(f"distillation.warmup_iterations={warmup}")
    record = make_run("warm").model_copy(update={"settings_json": settings.model_dump_json()})
    storage = open_storage(tmp_path)
    storage.create_run(record)
    console = Console(file=io.StringIO(), width=200)
    print_run(storage.workspace, "warm", console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("note: distillation.warmup_iterations is not below iterations: this run is plain GRPO" in shown) == plain
