"""The flow `train-network`: scenes to the weights of a network.

    prefect deployment run train-network/train-network --param 'config={"network": "csakd-student", "scenes": [...], ...}'

The state of the training lies in its own folder: a flow that dies is run again and goes on.
"""

# No `from __future__ import annotations` here: Prefect resolves the parameters' types when it serves the flow.
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from hyperfuse.catalogs.errors import ExpectedSkip
from hyperfuse.flows.prefect.artifacts import forwarded_logs
from hyperfuse.pipeline.training.run import Trained, train
from hyperfuse.pipeline.training.settings import TrainConfig


@task(name="train", cache_policy=NO_CACHE, persist_result=False)
def train_task(config: TrainConfig) -> Trained:
    """All steps that are left."""
    return train(config)


@flow(name="train-network", persist_result=False)
def train_network(config: TrainConfig) -> dict[str, Any]:
    """Train a network, or take up its training; returns the weight files and their scores."""
    logger = get_run_logger()
    with forwarded_logs():
        try:
            trained: Trained = train_task(config)
        except ExpectedSkip as skip:
            logger.warning("skipped: %s", skip)
            return {"output": str(config.output), "skipped": str(skip)}
    for role, path in trained.weights.items():
        create_table_artifact(
            table=[{"item": "weights", "value": str(path)}]
            + [{"item": name, "value": value} for name, value in trained.best[role].items()],
            key=f"train-network-{role}",
            description=path.stem,
        )
        logger.info("%s: %s", role, path)
    return trained.to_json()
