"""`leukoscope-train fit --ray`: the same fit in the workers of Ray Train, begun again when one is lost."""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from training.config import RunConfig
from training.errors import ConfigError, RunError, TrainingError
from training.processes import Processes, check_number

RAY_ADDRESS: Final = "RAY_ADDRESS"
# How often all workers begin again, from the last checkpoint, after one was lost.
_RESTARTS: Final = 3


def fit_on_ray(config: RunConfig, index: Path, folder: Path) -> None:
    """Train, or resume, in ``fit.devices`` workers: on the cluster of `RAY_ADDRESS`, or on this machine.

    Every machine must see the index, the cells and the run's folder under the same paths.

    Args:
        config: The run's configuration.
        index: Made by ``leukoscope-train index``.
        folder: The run's folder.

    Raises:
        ConfigError: Ray is not installed, or has no room for the workers.
        RunError: Ray can't be used, or the training failed.
    """
    if any(find_spec(name) is None for name in ("ray", "pyarrow", "pandas")):
        raise ConfigError("--ray needs Ray, which is not installed: pip install 'leukoscope[ray,training]'")
    # What Ray reads when it is loaded: nothing is told to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - an optional extra

    address = os.environ.get(RAY_ADDRESS)
    own: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(address=address or "local", logging_level=logging.WARNING, **own)
    except Exception as error:  # a plain Exception, where Ray takes too long to start
        where = f"used at {RAY_ADDRESS}={address}" if address else "started here"
        raise RunError(f"Ray can't be {where}: {error}") from error
    try:
        _train(config, index.resolve(), folder.resolve())
    finally:
        ray.shutdown()


def _train(config: RunConfig, index: Path, folder: Path) -> None:
    import ray.train.torch  # noqa: PLC0415 - an optional extra

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "index": str(index), "folder": str(folder)},
        scaling_config=ray.train.ScalingConfig(num_workers=config.fit.devices, **resources(config, nodes)),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=_RESTARTS),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise RunError(f"{folder}: the training on Ray failed: {_cause(error)}") from error


def train_worker(job: Mapping[str, Any]) -> None:
    """Fit in one worker of Ray Train; from the last checkpoint, where there is one.

    Args:
        job: ``config``, ``index`` and ``folder``, as `_train` makes them.
    """
    import ray.train.lightning  # noqa: PLC0415 - an optional extra

    from training.fit import fit  # noqa: PLC0415 - PyTorch is loaded in the workers

    config = RunConfig.model_validate(job["config"])
    check_number(config.fit.devices, ray.train.get_context().get_world_size(), "Ray")
    by_ray = Processes(
        {"devices": "auto", "strategy": ray.train.lightning.RayDDPStrategy()},
        [ray.train.lightning.RayLightningEnvironment()],
    )
    fit(config, Path(job["index"]), Path(job["folder"]), progress=False, together=by_ray)


def resources(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return what each worker takes: a GPU, or on CPUs as many of them as leave room for all.

    Args:
        config: ``fit.accelerator`` and ``fit.devices`` count.
        nodes: What each node has, by Ray's names.

    Raises:
        ConfigError: There is no room for all workers.
    """
    wanted = config.fit.devices
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if config.fit.accelerator != "cpu" and gpus:
        if gpus < wanted:
            raise ConfigError(f"the cluster has {gpus} GPUs; fit.devices wants {wanted}")
        return {"use_gpu": True}
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    for each in range(max(cpus, default=0), 0, -1):
        if sum(node // each for node in cpus) >= wanted:
            return {"use_gpu": False, "resources_per_worker": {"CPU": each}}
    raise ConfigError(f"the cluster has {sum(cpus)} CPUs; fit.devices wants {wanted}")


def _cause(error: BaseException) -> str:
    """Return what the training itself said, if it did, and else the last line of Ray's report."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, TrainingError):
            return str(seen)
        seen = seen.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
