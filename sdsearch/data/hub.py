"""Questions of data sets on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, cast

from schemas.base import nearest_name
from schemas.settings.data import HUB, SetName
from sdsearch.data.readers import BadRowError, DataError, Row

_DEFAULT: Final = "default"


class HubUnreachableError(DataError):
    """The hub does not answer: asking it for another data set would only take as long again."""


def hub_rows(source: str, name: SetName) -> Iterator[tuple[str, Row | BadRowError]]:
    """Yield the rows of a hub data set's configuration of this name; not run against the hub itself here."""
    import datasets  # Takes a second; files need none of it.

    datasets.disable_progress_bars()
    number = 0
    try:
        for row in _hub_table(source, name):
            number += 1
            yield f"{HUB}{source}, {name}, row {number}", row
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        after = f" after row {number}" if number else ""
        kind = HubUnreachableError if isinstance(error, ConnectionError) else DataError
        raise kind(
            f"{HUB}{source}: {name} cannot be loaded{after} ({reason}); check the name, the split and the connection, "
            "or download the files and name them in data.questions"
        ) from error


def _hub_table(source: str, name: SetName) -> Iterable[Row]:
    import datasets

    # What `datasets` keeps of a folder it does not read again when the folder changes.
    options: dict[str, Any] = {"split": name.split, "streaming": Path(source).is_dir()}
    try:
        return cast("Iterable[Row]", datasets.load_dataset(source, name.dataset, **options))
    except ValueError:
        # Asked only now, since it needs the hub also where the data set is in its cache.
        configurations = datasets.get_dataset_config_names(source)
        if name.dataset in configurations:
            raise
    if configurations == [_DEFAULT]:  # A data set without configurations: its rows say by data_source whose they are.
        return cast("Iterable[Row]", datasets.load_dataset(source, _DEFAULT, **options))
    near = nearest_name(name.dataset, configurations)
    hint = f"did you mean '{near}'?" if near else f"it has {', '.join(configurations)}"
    raise DataError(f"{HUB}{source}: no data set '{name.dataset}' in it; {hint}")
