"""The flow `fuse-archive`: a night of an archive, each scene a subflow run of its own.

    prefect deployment run fuse-archive/nightly --param 'config={"catalog": "...", "output": "..."}'

The states of the scenes lie beside the products, never in Prefect's database: a flow that dies is simply run again.
"""

# No `from __future__ import annotations` here: Prefect resolves the parameters' types when it serves the flow.
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from hyperfuse.flows.child import Children
from hyperfuse.flows.prefect.artifacts import forwarded_logs
from hyperfuse.pipeline.archive.backlog import Task
from hyperfuse.pipeline.archive.night import work_off
from hyperfuse.pipeline.archive.outcome import Outcome
from hyperfuse.pipeline.archive.settings import ArchiveConfig

_MAX_ROWS = 1000


@flow(name="fuse-archive", persist_result=False)
def fuse_archive(config: ArchiveConfig) -> dict[str, Any]:
    """Fuse what is due in an archive; returns the backlog as it is then, see `pipeline.archive.night.Night`."""
    children = Children(timeout_hours=config.timeout_hours)
    with forwarded_logs("hyperfuse.flows"):
        record = work_off(config, lambda task: _in_subflow(children, task), stop=children.stop).to_json()
    create_table_artifact(
        table=[{"state": state, "scenes": count} for state, count in record["counts"].items()],
        key="fuse-archive-states",
        description=f"{config.catalog} to {config.output}",
    )
    if scenes := [scene for scene in record["scenes"] if scene["state"] != "done"][:_MAX_ROWS]:
        create_table_artifact(table=scenes, key="fuse-archive-backlog", description="scenes that are not done")
    return record


def _in_subflow(children: Children, task: Task) -> Outcome:
    """Fuse a scene as a subflow run that is named after it and ends as it ended."""
    outcomes: list[Outcome] = []

    @flow(name="archived-scene", flow_run_name=lambda: task.id, persist_result=False)
    def archived_scene(scene: str, partner: str) -> State:  # noqa: ARG001 (shown with the run)
        outcomes.append(children.fuse(task))
        return _state(outcomes[-1])

    archived_scene(task.id, task.pair.msi.id, return_state=True)
    return outcomes[-1]


def _state(outcome: Outcome) -> State:
    """A refused scene is not a failure of the flow: nothing is wrong with the machine."""
    if outcome.exit_code == 0:
        return Completed()
    if outcome.verdict(attempts=1, limit=1) == "refused":
        return Completed(name="Refused", message=outcome.message)
    return Failed(message=outcome.message)
