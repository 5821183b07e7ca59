"""How fast groups are sampled: the quickstart's 16 questions x 5 rollouts, each way by turns in one process.

    python benchmarks/sampling.py --repeats 5 [--kinds transformers generate] [--model mini] [--threads 2]
    .venv-vllm/bin/python benchmarks/sampling.py --kinds transformers vllm

`transformers` is the program's own sampler; `vllm` is an engine of vLLM (needs the environment that `make vllm-install`
makes); `generate` is transformers' own generate, called once a turn for all conversations that go on. All have the same
questions and retriever; what counts is the ratio within a repeat. An engine's start and a first pass are not measured.
`--model large` is the mini policy widened to 135 million parameters (benchmarks/widened.py).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from generate_sampler import GenerateSampler
from results import machine, put_results
from widened import save_widened

from flows.run.live import Runtime, open_runtime
from flows.run.progress import SilentReporter
from flows.settings.load import load_settings
from flows.training.job import open_storage
from schemas.records.question import Question
from sdsearch.sampling.rollouts import RolloutLoop
from storage.runs.lock import RunLock

KINDS = ("transformers", "vllm", "generate")
Speeds = dict[str, list[tuple[float, float]]]
"""(sampled tokens/s, rollouts/s) of each repeat, by way."""


def main() -> None:
    options = read_options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.model == "large":
            save_widened(folder / "large")
            options.model = str(folder / "large")
        loops: dict[str, RolloutLoop] = {}
        runtimes: dict[str, Runtime] = {}
        for kind in options.kinds:
            runtimes[kind] = stack.enter_context(opened(kind, folder / kind, options))
            began = time.perf_counter()
            loops[kind] = loop_of(kind, runtimes[kind])
            print(f"{kind}: ready after {time.perf_counter() - began:.1f} s", flush=True)
        runtime = runtimes[options.kinds[0]]
        questions = runtime.questions.training[: options.questions]
        size = runtime.settings.rollout.group_size
        lines = [f"`python benchmarks/sampling.py {told(options)}`, {machine()}", ""]
        lines += [f"{len(questions)} questions x {size} rollouts, {options.threads} threads, mean ± standard deviation"]
        lines += ["", *report(by_turns(loops, questions, size, options.repeats))]
        if "vllm" in runtimes:
            lines += ["", engine_report(runtimes["vllm"])]
    print("\n".join(lines))
    if options.results:
        put_results(options.results, f"sampling-{'-'.join(options.kinds)}-{options.name}", lines)


def loop_of(kind: str, runtime: Runtime) -> RolloutLoop:
    """Return the rollout loop of a way."""
    loop = runtime.rollout_loop(0)
    return replace(loop, sampler=GenerateSampler(runtime.policy.model, loop.tokenizer)) if kind == "generate" else loop


def by_turns(loops: dict[str, RolloutLoop], questions: Sequence[Question], size: int, repeats: int) -> Speeds:
    """Measure each way once a repeat; the first pass of each warms up and is not counted."""
    speeds: Speeds = {kind: [] for kind in loops}
    for repeat in range(-1, repeats):
        for kind, loop in loops.items():
            speed = measure(loop, questions, size, repeat)
            if repeat >= 0:
                speeds[kind].append(speed)
                print(
                    f"repeat {repeat + 1} {kind:12}  {speed[0]:7.0f} tokens/s  {speed[1]:6.2f} rollouts/s", flush=True
                )
    return speeds


def measure(loop: RolloutLoop, questions: Sequence[Question], size: int, repeat: int) -> tuple[float, float]:
    """Roll the groups out and return (sampled tokens/s, rollouts/s)."""
    began = time.perf_counter()
    groups = loop.roll_out(
        questions, run_seed=repeat + 1, iteration=1, policy_version=0, group_size=size, temperature=1.0
    )
    seconds = time.perf_counter() - began
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return sum(len(rollout.completion_positions) for rollout in rollouts) / seconds, len(rollouts) / seconds


def report(speeds: Speeds) -> list[str]:
    """Return a table of each way and of its ratio to the first."""
    first, *others = speeds
    lines = ["| | tokens/s | rollouts/s |", "|---|---|---|"]
    lines += [f"| {kind} | {' | '.join(_columns(values, 1))} |" for kind, values in speeds.items()]
    for other in others:
        pairs = zip(speeds[first], speeds[other], strict=True)
        ratios = [(ours[0] / theirs[0], ours[1] / theirs[1]) for ours, theirs in pairs]
        lines.append(f"| {first} / {other} | {' | '.join(_columns(ratios, 2))} |")
    return lines


def _columns(values: Sequence[tuple[float, float]], digits: int) -> list[str]:
    spread = zip(*values, strict=True)
    return [f"{statistics.mean(of):.{digits}f} ± {statistics.stdev(of):.{digits}f}" for of in spread]


def engine_report(runtime: Runtime) -> str:
    sampled = runtime.sampler.release()
    assert sampled is not None, "vLLM has sampled"
    return (
        f"vLLM: {sampled.cache_hit_share:.0%} of prompt tokens from the prefix cache, {sampled.mean_concurrency:.1f} "
        f"turns at a time, {sampled.retrieval_s:.1f} of {sampled.seconds:.1f} s retrieving ({sampled.stalled_s:.1f} s "
        f"of them with nothing else to do), probe within {sampled.probe_max_difference:.1e} nats."
    )


@contextmanager
def opened(kind: str, workspace: Path, options: argparse.Namespace) -> Iterator[Runtime]:
    """Open a run that samples in this way."""
    settings = load_settings(
        "quickstart",
        [
            f"sampling.kind={'vllm' if kind == 'vllm' else 'transformers'}",
            f"model.path={options.model}",
            f"model.torch_threads={options.threads}",
            *(["sampling.enforce_eager=true", "sampling.kv_cache_gb=1"] if kind == "vllm" else []),
        ],
    )
    run, storage = f"benchmark-{kind}", open_storage(workspace, settings)
    lock = RunLock(storage.workspace, run)
    with lock, open_runtime(settings, run, storage, SilentReporter()) as runtime:
        yield runtime


def told(options: argparse.Namespace) -> str:
    return f"--kinds {' '.join(options.kinds)} --model {options.name} --repeats {options.repeats}"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["transformers", "generate"])
    parser.add_argument("--repeats", type=int, default=5, help="two or more")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--model", default="mini", help="mini, large, or a folder with a protocol-following policy")
    parser.add_argument("--threads", type=int, default=2, help="of torch, and of the engine")
    parser.add_argument("--results", type=Path, help="a markdown file whose marked section the results replace")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats: expected 2 or more, since a spread needs two")
    options.name = Path(options.model).name
    return options


if __name__ == "__main__":  # The engine's processes import this file.
    main()
