"""An alarm as Prefect sees it: an event, which automations can react to, and an artifact on the flow run's page."""

from __future__ import annotations

import re

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event

from schemas.records.ledger import RunWarning


def artifact_key(name: str) -> str:
    """Return a name as Prefect's artifact keys may be: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def publish_alarm(run: str, alarm: RunWarning) -> None:
    """Emit `sdsearch.alarm` for a run, with the alarm as payload, and make the artifact `RUN-alarm`."""
    emit_event(
        event="sdsearch.alarm",
        resource={"prefect.resource.id": f"sdsearch.run.{run}", "prefect.resource.name": run},
        payload=alarm.model_dump(mode="json"),
    )
    markdown = f"## {run}: alarm after {alarm.iteration} updates\n\n`{alarm.kind}`: {alarm.text}"
    create_markdown_artifact(markdown, key=f"{artifact_key(run)}-alarm", description=f"{run}: {alarm.kind}")
