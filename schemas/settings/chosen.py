"""Which plugins settings choose, of every kind, with the options that they are made with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from schemas.plugins import KINDS, Options, PluginKind

if TYPE_CHECKING:
    from schemas.settings.root import Settings

_OPTIONS: Final[Mapping[str, Callable[[Settings], Options]]] = {
    "reward": lambda settings: settings.reward.given,
    "block": lambda settings: settings.hindsight.masking_options,
    "retriever": lambda settings: getattr(settings.retrieval, "options", {}),
    "reader": lambda settings: settings.data.reader_options,
    "protocol": lambda settings: settings.rollout.protocol_options,
    "divergence": lambda settings: settings.distillation.divergence_options,
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
    """Return the plugin of each kind that the settings choose."""
    return [Choice(kind, _value(settings, kind.setting), _OPTIONS[name](settings)) for name, kind in KINDS.items()]


def with_options(settings: Settings, choice: Choice, options: Options) -> Settings:
    """Return the settings with other options of a plugin."""
    section, _, field = choice.kind.options.partition(".")
    changed = getattr(settings, section).model_copy(update={field: options})
    return settings.model_copy(update={section: changed})


def _value(settings: Settings, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(settings, section), field)
