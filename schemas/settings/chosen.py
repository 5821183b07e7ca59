"""Which plugins settings choose, of every kind, with the options that they are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.plugins import KINDS, Options, PluginKind

if TYPE_CHECKING:
    from schemas.settings.root import Settings

_OPTIONS: Final[Mapping[str, Callable[[Settings, str], Options]]] = {
    "reward": lambda settings, name: settings.reward.given,
    "block": lambda settings, name: settings.hindsight.masking_options,
    "retriever": lambda settings, name: getattr(settings.retrieval, "options", {}),
    "reader": lambda settings, name: settings.data.reader_options,
    "protocol": lambda settings, name: settings.rollout.protocol_options,
    "divergence": lambda settings, name: settings.distillation.divergence_options,
    "gate": lambda settings, name: settings.distillation.gate_options,
    "sink": lambda settings, name: settings.tracking.options_of(name),
}


class Choice(NamedTuple):
    """A plugin as the settings name it."""

    kind: PluginKind
    name: str
    options: Options

    @property
    def is_shipped(self) -> bool:
        """True for a plugin that comes with the program."""
        return self.name in self.kind.shipped


def chosen_plugins(settings: Settings) -> list[Choice]:
    """Return the plugin of each kind that the settings choose; of trackers there may be none, or several."""
    return [
        Choice(kind, name, _OPTIONS[kind.name](settings, name))
        for kind in KINDS.values()
        for name in _names(settings, kind)
    ]


def with_options(settings: Settings, choice: Choice, options: Options) -> Settings:
    """Return the settings with other options of a plugin."""
    section, _, field = choice.kind.options.partition(".")
    former = getattr(settings, section)
    several = isinstance(_value(settings, choice.kind.setting), tuple)
    changed = {**getattr(former, field), choice.name: options} if several else options
    return settings.model_copy(update={section: former.model_copy(update={field: changed})})


def _names(settings: Settings, kind: PluginKind) -> tuple[str, ...]:
    value = _value(settings, kind.setting)
    return value if isinstance(value, tuple) else (value,)


def _value(settings: Settings, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(settings, section), field)
