"""The settings tree; every field says what it does, and where the paper (arXiv 2605.18299) is its source.

"Paper" marks what the paper states, "ours" what it leaves open.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from schemas.base import Record
from schemas.sampling import SamplingSettings, TransformersSamplerSettings

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


class ModelSettings(Record):
    """The policy and how it is tuned."""

    path: str = Field(description="Folder or hub name of the starting weights; 'mini' is the shipped mini policy.")
    tuning: Literal["full", "lora"] = Field(default="full", description="Train all weights, or LoRA adapters (ours).")
    lora_rank: Positive = Field(default=16, description="Rank of the adapters.")
    lora_alpha: float = Field(default=32.0, gt=0, description="Scale of the adapters is lora_alpha / lora_rank.")
    lora_targets: str | tuple[str, ...] = Field(
        default="all-linear", description="Names of the layers that get adapters, or 'all-linear'."
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Type of the weights.")
    device: str = Field(default="cpu", description="Torch device, such as cpu or cuda:0.")
    torch_threads: Positive = Field(default=2, description="Threads that torch uses on the CPU.")
    trust_remote_code: bool = Field(
        default=False, description="Run the Python code that comes with a model folder; read that code first."
    )


class DataSettings(Record):
    """Questions and the corpus they are answered from."""

    questions: str = Field(
        default="world",
        description="'world' is the embedded data set; or a FlashRAG jsonl or parquet file, {split} in its name.",
    )
    dataset: str = Field(default="world", min_length=1, description="Name of the data set, part of a question's key.")
    train_split: str = Field(default="train", description="Split that rollouts are sampled on.")
    questions_per_iteration: Positive = Field(default=256, description="Groups an iteration (closest public relative).")
    shuffle_seed: int = Field(default=0, description="Seed of the epoch's order; no question repeats within an epoch.")


class LexicalEncoderSettings(Record):
    """BM25's TF-IDF weights as vectors; the embedded default."""

    kind: Literal["lexical"] = "lexical"
    num_dimensions: int = Field(
        default=2048, ge=0, description="Width the words are folded to; 0 keeps one dimension a word."
    )
    k1: float = Field(default=0.9, ge=0, description="Saturation of repeated words (BM25).")
    b: Fraction = Field(default=0.4, description="How much long passages are discounted (BM25).")
    seed: int = Field(default=0, description="Seed of the folding.")


class HFEncoderSettings(Record):
    """A transformers sentence encoder of the E5 kind."""

    kind: Literal["hf"] = "hf"
    path: str = Field(default="intfloat/e5-base-v2", description="Folder or hub name (paper).")
    query_prefix: str = Field(default="query: ", description="Put before every query (E5).")
    passage_prefix: str = Field(default="passage: ", description="Put before every passage (E5).")
    max_length: Positive = Field(default=256, description="Tokens a text is cut to.")
    batch_size: Positive = Field(default=64, description="Texts a forward.")
    device: str = Field(default="cpu", description="Torch device.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="Type of the weights.")
    trust_remote_code: bool = Field(
        default=False, description="Run the Python code that comes with the encoder's folder; read that code first."
    )


EncoderSettings = Annotated[LexicalEncoderSettings | HFEncoderSettings, Field(discriminator="kind")]


class RetrievalSettings(Record):
    """The corpus, its encoder and how much a search returns."""

    corpus: str = Field(default="world", description="'world' is the embedded corpus; else a Search-R1 jsonl.")
    encoder: EncoderSettings = Field(default=LexicalEncoderSettings(), description="What turns texts into vectors.")
    num_passages: Positive = Field(default=3, description="Passages a query (paper).")


class RolloutSettings(Record):
    """Caps and sampling of a rollout."""

    group_size: Annotated[int, Field(ge=2)] = Field(default=5, description="Rollouts a question, G (paper).")
    template: Literal["compact", "instruct"] = Field(default="instruct", description="Prompt wording (ours).")
    max_searches: Positive = Field(default=4, description="Searches a rollout; one more turn may answer (relative).")
    max_new_tokens: Positive = Field(default=512, description="Sampled tokens a turn (relative).")
    max_prompt_tokens: Positive = Field(default=2048, description="Longest prompt (relative).")
    max_observation_tokens: Annotated[int, Field(ge=16)] = Field(
        default=512, description="Longest reply of the environment; its closing tag is always kept (relative)."
    )
    temperature: float = Field(default=1.0, gt=0, description="Sampling temperature; losses divide logits by it too.")
    questions_per_batch: Positive = Field(default=64, description="Groups sampled in one batch; a memory bound.")


class RewardSettings(Record):
    """The outcome reward."""

    metric: Literal["f1", "em"] = Field(default="f1", description="Answer metric that is the reward (AutoRefine's F1).")
    format_bonus: float = Field(default=0.0, ge=0, description="Added when the format is valid; never enters a label.")


class GrpoSettings(Record):
    """Group-relative policy optimisation (paper, section 3; values of the closest relative)."""

    advantage_scale: Literal["group", "batch", "none"] = Field(
        default="group", description="Divide by the group's or the batch's standard deviation, or not at all."
    )
    clip_low: float = Field(default=0.2, ge=0, lt=1, description="Ratios below 1 - clip_low are clipped.")
    clip_high: float = Field(default=0.2, ge=0, description="Ratios above 1 + clip_high are clipped.")
    old_logprobs: Literal["sampler", "trainer"] = Field(
        default="sampler", description="Whose log-probabilities the ratio's denominator is (ours)."
    )
    importance_cap: float = Field(
        default=2.0, gt=0, description="Cap of the token-level truncated importance weight trainer/sampler (ours)."
    )
    kl_coefficient: float = Field(default=1e-3, ge=0, description="Weight of k3 KL to the reference; 0 drops it.")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        default="token_mean", description="How token losses of an optimiser step become one number."
    )
    constant_tokens: Positive = Field(default=1024, description="Tokens a rollout that 'constant' divides by.")


class HindsightSettings(Record):
    """The hindsight block (paper, section 3.2; ablations in section 5)."""

    masking: Literal["queries", "none", "current_documents"] = Field(
        default="queries",
        description="What a block keeps of a sibling: its queries; the whole trajectory; or no siblings at all but the "
        "documents of the focal turn (paper's ablations).",
    )
    labels: Literal["outcome", "none", "shuffled"] = Field(default="outcome", description="Labels of the attempts.")
    members: Literal["group", "leave_one_out", "focal_only", "correct_only"] = Field(
        default="group", description="Which siblings a block shows."
    )
    homogeneous: Literal["keep", "skip"] = Field(
        default="keep", description="Whether groups whose labels are all equal are distilled (ours)."
    )
    rho: float = Field(default=0.0, ge=0, lt=1, description="CORRECT when the label metric exceeds rho (paper: 0).")
    label_metric: Literal["f1", "em"] = Field(default="f1", description="Metric the labels come from (paper: F1).")
    max_block_tokens: Positive = Field(default=1024, description="Longer blocks lose whole attempts from their end.")


class DistillationSettings(Record):
    """On-policy self-distillation (paper, section 3.3)."""

    enabled: bool = Field(default=True, description="False is plain GRPO: no hindsight block, no teacher pass.")
    alpha: float = Field(default=1e-3, ge=0, description="Weight of L_SD (paper).")
    warmup_iterations: int = Field(default=50, ge=0, description="Iterations with alpha hard zero (paper).")
    positions: Literal["query", "completion"] = Field(default="query", description="Tokens that are distilled (paper).")
    divergence: Literal["jsd", "forward_kl", "reverse_kl", "mse"] = Field(
        default="jsd", description="Teacher-student divergence; forward_kl is KL(teacher || student) (paper)."
    )
    support: Literal["teacher", "student", "full"] = Field(
        default="teacher", description="Whose top-k tokens are compared; 'full' is the exact divergence (ours)."
    )
    tail: Literal["bucket", "renormalise"] = Field(
        default="bucket", description="One bucket for the mass outside the support, or none (ours)."
    )
    top_k: Positive = Field(default=50, description="Tokens of the support (paper).")


class UpdateSettings(Record):
    """The optimiser and how an iteration's rollouts are cut into steps."""

    learning_rate: float = Field(default=1e-6, gt=0, description="AdamW's learning rate (relative).")
    warmup_steps: int = Field(default=0, ge=0, description="Optimiser steps of linear learning-rate warm-up.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Decay to zero over the run after the warm-up."
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas.")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="The gradient is scaled down to this norm.")
    rollouts_per_step: Positive = Field(default=256, description="Rollouts an optimiser step (relative: 256).")
    epochs: Positive = Field(default=1, description="Passes over an iteration's rollouts.")
    max_tokens_per_microbatch: Positive = Field(default=16384, description="Padded tokens a forward.")
    head_chunk: Positive = Field(default=2048, description="Positions whose logits exist at one time.")
    gradient_parts_every: int = Field(
        default=10,
        ge=0,
        description="Iterations between measurements of both gradient norms (a second backward pass); 0: never.",
    )


class EvaluationSettings(Record):
    """Greedy evaluation of the plain policy on a fixed sample."""

    split: str = Field(default="dev", description="Split of the data set.")
    num_questions: Positive = Field(default=200, description="Questions, drawn by seed once for all evaluations.")
    every: Positive = Field(default=10, description="Iterations between evaluations; start and end are evaluated too.")
    modes: tuple[Literal["greedy", "sampled"], ...] = Field(
        default=("greedy",), min_length=1, description="Decoding: greedy (paper), or at the rollout temperature."
    )
    seed: int = Field(default=0, description="Seed of the sample of questions.")


class StorageSettings(Record):
    """Where things are kept."""

    database_deadline_s: float = Field(default=60.0, gt=0, description="Longest wait for another process's connection.")
    keep_checkpoints: Positive = Field(default=3, description="Newest checkpoints kept; the best on dev is kept too.")


class Settings(Record):
    """All settings of a run."""

    seed: int = Field(default=0, ge=0, description="Seed of the run; every random choice derives from it.")
    iterations: Positive = Field(default=200, description="Iterations of the run (paper: 200).")
    model: ModelSettings
    data: DataSettings = DataSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    rollout: RolloutSettings = RolloutSettings()
    sampling: SamplingSettings = TransformersSamplerSettings()
    reward: RewardSettings = RewardSettings()
    grpo: GrpoSettings = GrpoSettings()
    hindsight: HindsightSettings = HindsightSettings()
    distillation: DistillationSettings = DistillationSettings()
    update: UpdateSettings = UpdateSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    storage: StorageSettings = StorageSettings()

    @model_validator(mode="after")
    def _possible(self) -> Settings:
        if self.distillation.divergence == "mse" and self.distillation.tail == "renormalise":
            raise ValueError("distillation.divergence 'mse' compares probabilities as they are; set tail = 'bucket'")
        if self.hindsight.masking == "current_documents" and self.hindsight.members != "group":
            raise ValueError(
                "hindsight.masking 'current_documents' shows no siblings, so hindsight.members has no effect; "
                "leave members = 'group'"
            )
        return self

    def alpha_at(self, iteration: int) -> float:
        """L_SD's weight in an iteration (counted from 1): zero in the warm-up, then alpha; not a ramp (paper)."""
        distillation = self.distillation
        if not distillation.enabled or iteration <= distillation.warmup_iterations:
            return 0.0
        return distillation.alpha
