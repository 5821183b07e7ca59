"""What a run is: one that trains, from the start or as a fork, or one that asks a policy of another run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from schemas.base import Record


class TrainingKind(Record):
    """A run that trains from the starting weights."""

    kind: Literal["training"] = Field(default="training", description="This kind.")

    @property
    def title(self) -> str:
        """What people call it."""
        return "a run that trains"


class ForkKind(Record):
    """A run that trains on, from the policy where another run stood."""

    kind: Literal["fork"] = Field(default="fork", description="This kind.")
    source: str = Field(description="The run whose weights and optimiser it continues with.")
    first_iteration: int = Field(ge=2, description="Its first iteration; the source had done all before it.")

    @property
    def title(self) -> str:
        """What people call it."""
        return f"a fork of run '{self.source}' after {self.first_iteration - 1} updates"


class ReplayKind(Record):
    """A run that adopts another's rollouts and trains nothing: it shows them to another teacher."""

    kind: Literal["replay"] = Field(default="replay", description="This kind.")
    source: str = Field(description="The run that its rollouts are from.")
    first: int = Field(ge=1, description="First iteration that is replayed.")
    last: int = Field(ge=1, description="Last iteration that is replayed.")

    @property
    def title(self) -> str:
        """What people call it."""
        return f"a replay of iterations {self.first}:{self.last} of run '{self.source}'"


class EvaluationKind(Record):
    """A run that trains nothing: it answers the questions of data sets with one version of a policy."""

    kind: Literal["evaluation"] = Field(default="evaluation", description="This kind.")
    source: str | None = Field(description="The run whose policy is evaluated; None: the model of the settings.")
    version: int = Field(ge=0, description="Updates behind the policy that is evaluated.")

    @property
    def title(self) -> str:
        """What people call it."""
        whose = "a model" if self.source is None else f"run '{self.source}', version {self.version}"
        return f"an evaluation of {whose}"


RunKind = Annotated[TrainingKind | ForkKind | ReplayKind | EvaluationKind, Field(discriminator="kind")]
