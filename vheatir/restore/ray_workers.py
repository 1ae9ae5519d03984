"""The same job on a Ray cluster: Ray Data hands files to actors, each with a network of its own.

A worker that dies is replaced, and the files it held are done again; what it had finished stays. Inputs, outputs and
weights must be reachable from every machine under the same path or URL.
"""

import json
import os
import pickle
from collections.abc import Generator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vheatir.errors import UserError
from vheatir.restore.jobs import Job
from vheatir.restore.manifest import Manifest
from vheatir.restore.one_file import FileOptions, Outcome
from vheatir.restore.progress import Progress
from vheatir.restore.restorer import RestorerSettings
from vheatir.restore.workers import follow, restore_job

_FILES_PER_TASK = 16  # at most; what is lost with a worker is done again
_RETRIES = 3  # of a task whose worker is lost; one image may be what kills it
_CPUS_PER_WORKER = 4  # where there are no GPUs, by default


class _Worker:
    """One actor: a network, and files one after the other."""

    def __init__(self, settings: RestorerSettings, options: FileOptions, overwrite: bool):
        self._restorer = settings.restorer()
        self._options = options
        self._overwrite = overwrite

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        results = []
        for packed in batch["job"]:
            job = pickle.loads(packed)  # made by this program a moment ago
            if not self._overwrite and job.target.exists():  # it was not there when the run began
                results.append(Outcome("done", "finished by a worker that was lost afterwards"))
            else:
                results.append(restore_job(self._restorer, job, self._options))
        return {"number": list(batch["number"]), "outcome": [json.dumps(asdict(result)) for result in results]}


def run_on_ray(
    settings: RestorerSettings,
    jobs: Sequence[Job],
    options: FileOptions,
    *,
    workers: int | None,
    overwrite: bool,
    progress: Progress,
    manifest: Manifest | None,
) -> list[Outcome]:
    """Restore all jobs on the cluster that RAY_ADDRESS names, or on a local one.

    Args:
        settings: of the networks, one for each worker.
        jobs: files to restore.
        options: see `FileOptions`.
        workers: networks at work; None for one on each GPU, or on every four CPUs where there are none.
        overwrite: replace outputs that exist; without it, one that appears meanwhile is a lost worker's and stays.
        progress: hears of each outcome.
        manifest: notes each outcome.

    Returns:
        The outcome of each job, in their order.
    """
    sent = [job.absolute() for job in jobs]
    if settings.weights is not None and Path(settings.weights).is_file():
        settings = replace(settings, weights=str(Path(settings.weights).absolute()))
    return follow(_outcomes(settings, sent, options, workers, overwrite), jobs, progress, manifest)


def _outcomes(
    settings: RestorerSettings, jobs: Sequence[Job], options: FileOptions, workers: int | None, overwrite: bool
) -> Generator[tuple[int, Outcome], None, None]:
    ray = _ray()
    resources = ray.cluster_resources()
    on_gpu = resources.get("GPU", 0) >= 1 and not str(settings.device or "cuda").startswith("cpu")
    if workers is None:
        workers = int(resources["GPU"] if on_gpu else max(1, resources.get("CPU", 1) // _CPUS_PER_WORKER))
    per_task = max(1, min(_FILES_PER_TASK, len(jobs) // (8 * workers)))
    rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the files of a task that cannot be done are named below, the others go on
    data = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // per_task))
    done = data.map_batches(
        _Worker,
        fn_constructor_args=(settings, options, overwrite),
        batch_size=per_task,
        compute=ray.data.ActorPoolStrategy(size=workers),  # lost actors are replaced
        max_task_retries=_RETRIES,
        num_gpus=1 if on_gpu else 0,
        num_cpus=1,
    )
    missing = set(range(len(jobs)))
    try:
        for row in done.iter_rows():
            missing.discard(number := int(row["number"]))
            yield number, Outcome(**json.loads(row["outcome"]))
    except ray.exceptions.RayError as error:
        raise UserError(f"the Ray job ended early ({error}); the same command goes on with the rest") from error
    for number in sorted(missing):
        text = f"{jobs[number].source}: the workers that took it or its neighbors were lost {_RETRIES + 1} times"
        yield number, Outcome("failed", text)


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError(
            f"--engine ray needs Ray, which is not installed ({error}); pip install 'vheatir[ray]'"
        ) from None
    if not ray.is_initialized():
        root = str(Path(__file__).resolve().parents[2])  # a checkout that is not installed is found by local workers
        paths = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, logging_level="ERROR")
    return ray
