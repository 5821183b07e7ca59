"""The command `sdsearch doctor`."""

from __future__ import annotations

from flows.console.options import (
    HOME,
    ConfigArgument,
    SetOption,
    WorkspaceOption,
    make_console,
)


def doctor(
    config: ConfigArgument = "quickstart", overrides: SetOption = None, workspace: WorkspaceOption = HOME
) -> None:
    """Check what the settings need on this machine; exit code 1 when something is missing."""
    from flows.doctor.doctor import doctor as examine

    if not examine(config, overrides or [], workspace, make_console()):
        raise SystemExit(1)
