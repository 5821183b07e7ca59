"""What can be brought as a plugin, and the names by which settings choose one. Nothing is imported by these names here.

A setting names a plugin by a short name (a shipped one's, or an entry point of an installed package) or by an import
path such as `my_pkg.my_mod:thing`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, NamedTuple

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from schemas.base import STORED, nearest_name

_IMPORT_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
PLUGIN: Final = "plugin"
"""What tells the settings of a plugin from those of the shipped kinds of a section."""

Options = dict[str, Any]
"""A plugin's own settings; the plugin's model says which there are."""


class PluginKind(NamedTuple):
    """A seam: the setting that chooses the plugin, and what the plugin has to be."""

    name: str
    title: str
    setting: str
    options: str
    base: str  # Import path of the class that a plugin is derived from.
    parameters: tuple[str, ...] | None  # What a plain function is called with; None where a function will not do.
    shipped: Mapping[str, str]  # Short name to import path.
    stages: tuple[str, ...]  # The stages whose work depends on the plugin's code.
    decides: bool = True  # False where nothing that a run makes depends on it: its code may change under a run.

    @property
    def group(self) -> str:
        """The group of entry points by which installed packages bring more."""
        return f"sdsearch.{self.name}s"


KINDS: Final[Mapping[str, PluginKind]] = {
    kind.name: kind
    for kind in (
        PluginKind(
            "reward",
            "reward",
            "reward.name",
            "reward.options",
            "sdsearch.credit.rewards:Reward",
            ("rollout", "golden_answers", "scores"),
            {"answer": "sdsearch.credit.rewards:AnswerReward"},
            ("score",),
        ),
        PluginKind(
            "divergence",
            "divergence",
            "distillation.divergence",
            "distillation.divergence_options",
            "sdsearch.credit.divergence:Divergence",
            ("teacher_QC", "student_QC"),
            {name: f"sdsearch.credit.divergence:{name}" for name in ("jsd", "forward_kl", "reverse_kl", "mse")},
            ("teacher", "update"),
        ),
        PluginKind(
            "gate",
            "gate",
            "distillation.gate",
            "distillation.gate_options",
            "sdsearch.credit.gates.ports:Gate",
            ("tokens",),
            {
                "none": "sdsearch.credit.gates.ports:everything",
                "sigmoid": "sdsearch.credit.gates.sigmoid:Sigmoid",
                "influence": "sdsearch.credit.gates.influence:influence",
                "attenuation": "sdsearch.credit.gates.attenuation:attenuation",
                "outcome": "sdsearch.credit.gates.outcome:outcome",
            },
            ("teacher",),
        ),
        PluginKind(
            "block",
            "hindsight block",
            "hindsight.masking",
            "hindsight.masking_options",
            "sdsearch.credit.block_variants:BlockVariant",
            ("member",),
            {
                "queries": "sdsearch.credit.block_variants:QueriesOnly",
                "none": "sdsearch.credit.block_variants:WholeTrajectories",
                "current_documents": "sdsearch.credit.block_variants:CurrentDocuments",
            },
            ("hindsight",),
        ),
        PluginKind(
            "protocol",
            "protocol",
            "rollout.protocol",
            "rollout.protocol_options",
            "sdsearch.protocol.ports:ActionProtocol",
            None,
            {
                "tags": "sdsearch.protocol.parsing:TagProtocol",
                "search_r1": "sdsearch.protocol.search_r1:SearchR1",
                "autorefine": "sdsearch.protocol.autorefine:AutoRefine",
                "tool_call": "sdsearch.protocol.tool_call:ToolCall",
            },
            ("sample", "hindsight", "evaluate"),
        ),
        PluginKind(
            "retriever",
            "retriever",
            "retrieval.kind",
            "retrieval.options",
            "sdsearch.retrieval.ports:RetrieverPlugin",
            ("settings", "workspace"),
            {
                "dense": "flows.retrieval.dense:open_dense",
                "bm25": "flows.retrieval.bm25:open_bm25",
                "hybrid": "flows.retrieval.open:open_hybrid",
                "http": "flows.retrieval.open:open_http",
            },
            ("sample", "evaluate"),
        ),
        PluginKind(
            "reader",
            "reader of question files",
            "data.reader",
            "data.reader_options",
            "sdsearch.data.file_readers:Reader",
            ("path", "dataset", "split"),
            {"standard": "sdsearch.data.file_readers:standard"},
            (),  # What it read is an input of the stages: the questions themselves are hashed.
        ),
        PluginKind(
            "sink",
            "tracker",
            "tracking.sinks",
            "tracking.options",
            "flows.tracking.ports:Sink",
            None,
            {
                "tensorboard": "flows.tracking.tensorboard:TensorBoardSink",
                "wandb": "flows.tracking.wandb:WandbSink",
                "mlflow": "flows.tracking.mlflow:MlflowSink",
                "trackio": "flows.tracking.trackio:TrackioSink",
            },
            (),
            decides=False,
        ),
    )
}


def is_import_path(name: str) -> bool:
    """True for `package.module:name`."""
    return _IMPORT_PATH.fullmatch(name) is not None


def installed(kind: PluginKind) -> dict[str, EntryPoint]:
    """Return the plugins of a kind that other installed packages announce, by name."""
    return {entry.name: entry for entry in entry_points(group=kind.group)}


def import_path_of(kind: PluginKind, name: str) -> str:
    """Return the import path that a name stands for; ValueError, with the nearest name, for one that is unknown."""
    if name in kind.shipped:
        return kind.shipped[name]
    if is_import_path(name):
        return name
    known = installed(kind)
    if name in known:
        return known[name].value
    names = [*kind.shipped, *known]
    near = nearest_name(name, names)
    hint = f"did you mean '{near}'?" if near else f"there {'is' if len(names) == 1 else 'are'} {', '.join(names)}."
    raise ValueError(f"no {kind.title} {name[:100]!r}; {hint} A plugin of your own is named my_package.my_module:Name")


@dataclass(frozen=True)
class Names:
    """Marks a setting that chooses a plugin: its value is checked to be a known name or an import path."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Check the name after the type; what a run has stored is not checked again, since packages come and go."""

        def check(name: str, info: ValidationInfo) -> str:
            if info.context != STORED:
                import_path_of(KINDS[self.kind], name)
            return name

        checked: Callable[[Any, ValidationInfo], Any] = check
        return core_schema.with_info_after_validator_function(checked, handler(source))

    def allowed(self) -> str:
        """Return in words what the setting may be."""
        return f"{', '.join(repr(name) for name in KINDS[self.kind].shipped)} or a plugin"
