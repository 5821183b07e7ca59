"""What a run was begun with besides its settings, kept beside its record: an interrupted run goes on with the same."""

from __future__ import annotations

from pydantic import Field

from schemas.base import Record


class PromptFrame(Record):
    """What stands around a question in every prompt of a run: text, and the tokens that it was made into once."""

    template: str = Field(description="rollout.template: the wording of the task.")
    head: str = Field(description="What the chat template puts before the user's words; empty without one.")
    before: str = Field(description="The task, up to the question.")
    after: str = Field(description="What follows the question, to the start of the policy's own turn.")
    head_token_ids: tuple[int, ...] = Field(description="Tokens of `head`.")
    before_token_ids: tuple[int, ...] = Field(description="Tokens of `before`.")
    after_token_ids: tuple[int, ...] = Field(description="Tokens of `after`.")

    @property
    def num_tokens(self) -> int:
        """Tokens of a prompt that are not the question's."""
        return len(self.head_token_ids) + len(self.before_token_ids) + len(self.after_token_ids)


class RunInputs(Record):
    """What a run was begun with; absent for runs of programs that did not keep it."""

    frame: PromptFrame = Field(description="The text around a question in every prompt.")
    max_prompt_tokens: int = Field(description="Longest prompt that a question may make: the setting, or the context.")
    questions: dict[str, str] = Field(description="Hash of the questions of each data set's split, 'name:split'.")
    model_files: dict[str, str] = Field(
        description="sha256 of each file of model.path that is read, by name; of a hub name, its revision."
    )
    plugins: dict[str, dict[str, str]] = Field(
        default={},
        description="sha256 of each source file of a plugin that is not shipped, by the setting that names it.",
    )
    index_hash: str = Field(description="Fingerprint of what is searched.")
