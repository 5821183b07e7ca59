"""One way to make a step's gradient, in a process of its own that obeys lines on its standard input.

Started by benchmarks/update.py, whose docstring says what is measured. Lines: `gradient FILE` (make the gradient once
and write it there), `measure` (make it once and tell how long it took), `profile` (tell on what). Each is answered with
one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from update_cases import CASES, CLIP, KL, draw_rollouts, draw_sequences, make_model, settings_of
from update_measures import ATTENTION_FLOPS, forget_peak_memory, give_back_memory, matmul_peak, peak_memory, profile

from schemas.settings.root import Settings
from sdsearch.model.policy import causal_lm, trainable_parameters
from sdsearch.training.loss import ScoredRollout, accumulate_gradient, weigh
from sdsearch.training.loss_settings import LossSettings


def our_way(model: nn.Module, scored: Sequence[ScoredRollout], settings: Settings) -> Callable[[], float]:
    """The program's own step: loss and gradient, without the optimiser."""
    members = weigh(scored, settings.grpo)

    def step() -> float:
        terms = accumulate_gradient(model, members, LossSettings.of(settings), 0.0)
        return float(terms.policy_loss + KL * terms.kl)

    return step


def trl_way(model: nn.Module, scored: Sequence[ScoredRollout], group_size: int) -> Callable[[], float]:
    """TRL's own log-probabilities and loss, a padded group at a time; its trainer is made without its data side."""
    from trl.trainer.utils import add_fused_lm_head  # TRL is there for this way only.

    add_fused_lm_head(causal_lm(model), temperature=1.0, outputs=("log_probs", "entropy"))
    trainer = trl_trainer(model)
    num_tokens = torch.tensor(float(sum(len(item.rollout.sequence.reads) for item in scored)))
    batches = [
        {**padded(scored[start : start + group_size]), "num_items_in_batch": num_tokens}
        for start in range(0, len(scored), group_size)
    ]

    def step() -> float:
        total = 0.0
        for batch in batches:
            loss = trainer._compute_loss(model, batch)
            loss.backward()
            total += float(loss.detach())
        return total

    return step


def trl_trainer(model: nn.Module) -> object:
    """Return a GRPOTrainer that holds what its loss reads, with the loss that is a mean over the step's tokens."""
    from accelerate import Accelerator
    from trl import GRPOTrainer

    trainer = GRPOTrainer.__new__(GRPOTrainer)
    arguments = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1, report_to=[])
    trainer.__dict__.update(
        accelerator=Accelerator(cpu=True),
        args=arguments,
        model=model,
        state=SimpleNamespace(global_step=0),
        loss_type="dapo",
        beta=KL,
        epsilon_low=CLIP,
        epsilon_high=CLIP,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    return trainer


def padded(scored: Sequence[ScoredRollout]) -> dict[str, Tensor]:
    """Return a group as TRL's batch: what was not sampled is masked as a tool's words, log-probabilities 0 there."""
    sequences = [item.rollout.sequence for item in scored]
    shape = len(sequences), max(sequence.num_continued + 1 for sequence in sequences)
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("completion_ids", "completion_mask", "tool_mask")}
    numbers = {name: torch.zeros(shape) for name in ("old_per_token_logps", "ref_per_token_logps")}
    for row, (item, sequence) in enumerate(zip(scored, sequences, strict=True)):
        length, reads = sequence.num_continued + 1, list(sequence.reads)
        batch["completion_ids"][row, :length] = torch.tensor(sequence.token_ids[:length])
        batch["completion_mask"][row, :length] = 1
        batch["tool_mask"][row, reads] = 1
        numbers["old_per_token_logps"][row, reads] = item.sampled_N
        assert item.reference_N is not None
        numbers["ref_per_token_logps"][row, reads] = item.reference_N
    prompts = torch.tensor([sequence.context_ids for sequence in sequences])
    advantages = torch.tensor([item.rollout.advantage for item in scored])
    return {
        **batch, **numbers, "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "advantages": advantages
    }  # fmt: skip


def serve(step: Callable[[], float], model: nn.Module) -> None:
    """Answer each line until there is none."""
    for line in sys.stdin:
        order, _, file = line.strip().partition(" ")
        peak = matmul_peak() if order == "measure" else 0.0
        forget_peak_memory()
        began = time.perf_counter(), time.process_time()
        if order == "gradient":
            with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
                loss = step()
            gradients = {name: parameter.grad for name, parameter in trainable_parameters(model).items()}
            save_file({name: gradient for name, gradient in gradients.items() if gradient is not None}, file)
            answer = {"loss": loss, "flops": counter.get_total_flops()}
        elif order == "profile":
            answer = profile(step)
        else:
            loss = step()
            wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
            answer = {"loss": loss, "wall_s": wall, "cpu_s": cpu, "peak_bytes": peak_memory(), "matmul_gflops": peak}
        model.zero_grad(set_to_none=True)
        give_back_memory()
        print(json.dumps(answer), flush=True)


def main() -> None:
    name, case_name, tuning, checkpointing, threads, file = sys.argv[1:]
    torch.set_num_threads(int(threads))
    case, checkpoints = CASES[case_name], checkpointing == "True"
    model = make_model(case, tuning, checkpoints)
    groups = draw_sequences(case, causal_lm(model).config.vocab_size)
    settings = settings_of(case, groups, checkpoints)
    scored = draw_rollouts(model, groups, settings, Path(file))
    step = our_way(model, scored, settings) if name == "ours" else trl_way(model, scored, len(case.searches))
    print(json.dumps({"useful_tokens": sum(item.rollout.sequence.num_tokens for item in scored)}), flush=True)
    serve(step, model)


if __name__ == "__main__":
    main()
