"""The settings tree; every field says what it does and, where it is part of the method, who chose its default.

"paper" marks what arXiv 2605.18299 states, "relative" what its closest public relative (AutoRefine, on Search-R1) uses
where the paper is silent, "ours" what is chosen here.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from schemas.base import STORED, Positive, Section, hash_json
from schemas.plugins import Names, Options
from schemas.settings.added import FREE, without_added
from schemas.settings.alarms import AlarmSettings
from schemas.settings.data import DataSettings
from schemas.settings.distributed import DistributedSettings
from schemas.settings.evaluation import EvaluatedSet, EvaluationSettings
from schemas.settings.method import (
    DistillationSettings,
    GrpoSettings,
    HindsightSettings,
    RewardSettings,
    UpdateSettings,
)
from schemas.settings.retrieval import DenseRetrievalSettings, RetrievalSettings
from schemas.settings.rules import broken_rules
from schemas.settings.sampling import SamplingSettings, TransformersSamplerSettings
from schemas.settings.strength import planned_weight
from schemas.settings.templates import check_template, template_title
from schemas.settings.tracking import TrackingSettings
from schemas.settings.warmup import WarmupSettings

__all__ = [
    "STORED",
    "DataSettings",
    "DistillationSettings",
    "EvaluationSettings",
    "GrpoSettings",
    "HindsightSettings",
    "RetrievalSettings",
    "RewardSettings",
    "Settings",
    "UpdateSettings",
]


class ModelSettings(Section):
    """The policy and how it is tuned."""

    path: str = Field(description="Folder or hub name of the starting weights; 'mini' is the shipped mini policy.")
    tuning: Literal["full", "lora"] = Field(default="full", description="Train all weights, or LoRA adapters (ours).")
    lora_rank: Positive = Field(default=16, description="Rank of the adapters.")
    lora_alpha: float = Field(default=32.0, gt=0, description="Scale of the adapters is lora_alpha / lora_rank.")
    lora_targets: str | tuple[str, ...] = Field(
        default="all-linear",
        description="Names of the layers that get adapters, a regular expression over whole names, or 'all-linear'.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="float32", description="Type of the weights.")
    device: str = Field(default="cpu", description="Torch device, such as cpu or cuda:0.")
    attention: Literal["split", "flex"] = Field(
        default="split",
        description="How the update attends to a group's shared context: PyTorch's SDPA a rollout at a time, on any "
        "device, or one FlexAttention kernel, on a GPU (ours).",
    )
    check_tolerance: float = Field(
        default=0.0,
        ge=0,
        description="When a run begins, sampler and update are compared with the plain model; it is refused where "
        "log-probabilities differ by more than this, nats: the largest in float32, the mean in bfloat16. 0 is 0.001 "
        "in float32 and 0.1 in bfloat16 (ours).",
    )
    torch_threads: Positive = Field(default=2, description="Threads that torch uses on the CPU.")
    trust_remote_code: bool = Field(
        default=False, description="Run the Python code that comes with a model folder; read that code first."
    )


RetriesUse = Literal["off_policy", "distillation"]


class RolloutSettings(Section):
    """Caps and sampling of a rollout (paper, section 4)."""

    group_size: Annotated[int, Field(ge=2)] = Field(default=5, description="Rollouts per question, G (paper).")
    template: Annotated[str, AfterValidator(check_template)] = Field(
        default="instruct",
        description="Prompt wording: 'compact', 'instruct', 'few_shot' with two worked examples, or the path of a text "
        "file with {question} in it, whose text is kept (ours).",
    )
    protocol: Annotated[str, Names("protocol")] = Field(
        default="tags",
        description="How the policy searches and answers: 'tags' (relative), 'search_r1' and 'autorefine' as their "
        "public checkpoints do, 'tool_call' by the tokenizer's chat template, or a plugin.",
    )
    protocol_options: Options = Field(default={}, description="The settings of a plugin's protocol.")
    max_searches: Positive = Field(default=4, description="Searches per rollout; one more turn may answer (relative).")
    max_new_tokens: Positive = Field(default=512, description="Sampled tokens per turn (relative).")
    max_prompt_tokens: Positive = Field(default=2048, description="Longest prompt (relative).")
    max_observation_tokens: Annotated[int, Field(ge=16)] = Field(
        default=512, description="Longest reply of the environment; its closing tag is always kept (relative)."
    )
    temperature: float = Field(
        default=1.0, gt=0, description="Sampling temperature; losses divide logits by it too, teacher's and student's."
    )
    questions_per_batch: Positive = Field(default=64, description="Groups sampled in one batch; a memory bound.")
    retries: int = Field(
        default=0,
        ge=0,
        description="Further rollouts of each group without a CORRECT one, sampled with its hindsight block (ours).",
    )
    retries_use: RetriesUse = Field(
        default="off_policy",
        description="What retries are for: members of their group in the policy loss, with the student's ratio to the "
        "policy that read the block; or targets of L_SD alone (ours).",
    )

    @property
    def questions_per_evaluation_batch(self) -> int:
        """Questions that an evaluation answers in one batch: one sibling each, where training has a group's."""
        return 4 * self.questions_per_batch

    @property
    def wording(self) -> str:
        """What identifies the words around a question: the template, the protocol and its options."""
        if self.protocol == "tags":
            return template_title(self.template)
        options = f" {json.dumps(self.protocol_options, sort_keys=True, default=str)}" if self.protocol_options else ""
        return f"{self.protocol} {template_title(self.template)}{options}"


class NothingLearntSettings(Section):
    """What a run does from which nothing can be learnt: its policy writes no turn of the protocol, for example."""

    action: Literal["warn", "stop"] = Field(
        default="warn", description="Warn once, with what to do, and continue; or end the run (ours)."
    )
    after_iterations: Positive = Field(
        default=5,
        description="Iterations in a row without a mixed group, a query, a gradient or a passage found after which it "
        "is said; what the first evaluation shows is said at once (ours).",
    )


class StorageSettings(Section):
    """Where things are kept."""

    database_deadline_s: float = Field(default=60.0, gt=0, description="Longest wait for another process's connection.")
    keep_checkpoints: Annotated[int, Field(ge=2)] = Field(
        default=3, description="Newest checkpoints kept, of which resuming may need two; the best on dev is kept too."
    )
    keep_evaluated: bool = Field(
        default=False,
        description="Keep the checkpoint of each evaluation too, so that a study can have its policies answer other "
        "questions later.",
    )
    optimiser_every: Annotated[int, Field(ge=1)] = Field(
        default=1,
        description="Store the optimiser with every n-th version, and with the last: it is several times the size of "
        "the weights. A run that is resumed between takes the updates since the last stored one again, from what was "
        "sampled for them.",
    )


class Settings(Section):
    """All settings of a run."""

    seed: int = Field(default=0, ge=0, lt=2**63, description="Seed of the run; every random choice derives from it.")
    iterations: int = Field(default=200, ge=1, lt=2**31, description="Iterations of the run (paper: 200).")
    model: ModelSettings
    data: DataSettings = DataSettings()
    retrieval: RetrievalSettings = DenseRetrievalSettings()
    rollout: RolloutSettings = RolloutSettings()
    sampling: SamplingSettings = TransformersSamplerSettings()
    reward: RewardSettings = RewardSettings()
    grpo: GrpoSettings = GrpoSettings()
    hindsight: HindsightSettings = HindsightSettings()
    distillation: DistillationSettings = DistillationSettings()
    update: UpdateSettings = UpdateSettings()
    distributed: DistributedSettings = DistributedSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    nothing_learnt: NothingLearntSettings = NothingLearntSettings()
    alarms: AlarmSettings = AlarmSettings()
    storage: StorageSettings = StorageSettings()
    tracking: TrackingSettings = TrackingSettings()
    warmup: WarmupSettings = WarmupSettings()

    def content_hash(self) -> str:
        """Return the hash of all settings but those of FREE and FREE_PARTS, with which a run may go on as it likes.

        One that was added after runs were made changes it by its value alone.
        """
        return hash_json(without_added(self.model_dump(mode="json", exclude=set(FREE))))

    @model_validator(mode="after")
    def _possible(self, info: ValidationInfo) -> Settings:
        broken = [] if info.context == STORED else broken_rules(self)
        if broken:
            raise ValueError("; ".join(broken))
        return self

    @property
    def num_steps_per_iteration(self) -> int:
        """Optimiser steps of one iteration."""
        rollouts = self.data.questions_per_iteration * self.rollout.group_size
        return self.update.epochs * -(-rollouts // self.update.rollouts_per_step)

    @property
    def longest_conversation(self) -> int:
        """Tokens of the longest conversation that a rollout may have."""
        rollout = self.rollout
        sampled = (rollout.max_searches + 1) * rollout.max_new_tokens
        return rollout.max_prompt_tokens + sampled + rollout.max_searches * rollout.max_observation_tokens

    @property
    def distils(self) -> bool:
        """Whether any iteration distils: the first one after the warm-up does, when there is one."""
        first = self.distillation.warmup_iterations + 1
        return first <= self.iterations and self.alpha_at(first) > 0

    @property
    def only_warms_up(self) -> bool:
        """Whether distillation is on and every iteration is warm-up: the run is plain GRPO."""
        return self.distillation.enabled and not self.distils

    def evaluated_after(self, iteration: int) -> tuple[EvaluatedSet, ...]:
        """Return the data sets that the policy is evaluated on then: each every N iterations and after the last."""
        return self.evaluation.sets_of_run(self.data, None if iteration == self.iterations else iteration)

    def evaluates_after(self, iteration: int) -> bool:
        """Whether the policy is evaluated then, on any data set."""
        return bool(self.evaluated_after(iteration))

    def stores_optimiser(self, version: int) -> bool:
        """Whether a version's checkpoint has the state of its optimiser: every n-th, and the last."""
        return version % self.storage.optimiser_every == 0 or version == self.iterations

    def alpha_at(self, iteration: int) -> float:
        """L_SD's weight in an iteration (counted from 1) as the settings alone have it.

        Zero in the warm-up, then alpha; not a ramp (paper). The schedule lowers it. What strength 'gradient_share' and
        schedule 'retire' measure is not known here: they change it while it is not zero (sdsearch.training.strength).
        """
        distillation = self.distillation
        return distillation.alpha * self.planned_weight_at(iteration) if distillation.enabled else 0.0

    def planned_weight_at(self, iteration: int) -> float:
        """What the warm-up and the schedule plan to leave of the strength in an iteration, in [0, 1]."""
        distillation = self.distillation
        distilled = iteration - distillation.warmup_iterations
        if distilled < 1:
            return 0.0
        return planned_weight(distillation.schedule, distilled, self.iterations - distillation.warmup_iterations)
