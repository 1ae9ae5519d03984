"""`vheatir.restore`: images through a network, one or many, from files into files."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import vheatir.restore.locations as locations
from vheatir.errors import UnwrittenError, UserError
from vheatir.image_io import MAX_PIXELS
from vheatir.image_io.formats import DEPTHS, FORMATS
from vheatir.restore.defaults import DEFAULT_CRF, DEFAULT_TASK, MAX_LEVEL, MOST_CRF, TASKS
from vheatir.restore.jobs import Job, plan_file, plan_jobs
from vheatir.restore.locations import Location
from vheatir.restore.manifest import Manifest
from vheatir.restore.one_file import FileOptions, Outcome
from vheatir.restore.progress import Progress
from vheatir.restore.ray_workers import run_on_ray
from vheatir.restore.restorer import Restorer, RestorerSettings
from vheatir.restore.video.formats import RESTORED, WRITTEN
from vheatir.restore.workers import run, usual_workers
from vheatir.utils.files import printable, skipped_note

# Suffixes of well-known images and pages: a name with one of them means a file, and none is written as such.
_OTHERS = "apng dds eps exr fits gif hdr ico icns j2k jp2 jpx jxl jxr pbm pcx pdf pgm pnm ppm psd qoi svg tga xcf"
_NOT_WRITTEN = frozenset(f".{name}" for name in _OTHERS.split())


class Restored(NamedTuple):
    """A file, where its result is, and what became of it."""

    source: Location
    target: Location
    outcome: Outcome


def restore(  # long function: most of it says what its arguments mean
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    task: str = DEFAULT_TASK,
    weights: str | Path | None = None,
    sigma: float | None = None,
    quality: float | None = None,
    strength: float = 1.0,
    luma: float = 1.0,
    chroma: float = 1.0,
    ensemble: bool = False,
    device: str | None = None,
    precision: str = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    max_megapixels: float = MAX_PIXELS / 1e6,
    crf: float = DEFAULT_CRF,
    workers: int | None = None,
    engine: str = "local",
    manifest: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Restored]:
    """Clean up photographs and clips, denoise image files, or remove the artifacts of JPEG compression.

    Clips (MP4, MOV, MKV, WebM) need `pip install 'vheatir[video]'`, keep their times, sound and color tags, and are
    gone on with after a kill (docs/video.md). Of images, bit depth, alpha, color profile and EXIF are kept. Outputs are
    whole or not there. `Restorer` does the same for arrays.

    Args:
        inputs: one or several files, folders, globs or fsspec URLs.
        output: folder for the results, made where it does not exist; a file goes to output/name, a folder's content to
            output/path-below-that-folder. For a single file also the file to write, when its name ends like an image's
            and no such folder exists; the format is that of the name.
        task: "photo" (noise and compression of photographs), "denoise" (Gaussian noise) or "jpeg".
        weights: shipped name or safetensors file; the task's own by default.
        sigma: noise level (0-255) instead of the estimated one, for weights that take a level.
        quality: JPEG quality (0-100) instead of the one read from the file or estimated; from 95 on the task "jpeg"
            leaves an image as it is.
        strength: result = input + strength * (restored - input), from 0 (the input) to 1.
        luma: share of the change of brightness that is kept, from 0 to 1, multiplied with the strength.
        chroma: the same for the change of color.
        ensemble: mean over eight flips and rotations: better, eight times slower.
        device: torch device; a GPU when there is one by default.
        precision: "float32", "bf16" or "auto", see `Restorer`.
        tile: side of the tiles in pixels; 0: the whole image; by the image's size and the free memory by default.
        overlap: pixels that neighboring tiles share.
        max_megapixels: refuse images that claim to be larger.
        crf: constant quality of the encoder of clips, from 0; lower is better and larger.
        workers: files processed at a time; by default one per core, at most 4, and of small files four times that.
        engine: "local", or "ray" for the machines of a Ray cluster.
        manifest: JSON lines, one for each input, with its result.
        overwrite: replace outputs that exist; without it they stay and their inputs are not read.
        progress: hears what happens, such as `vheatir.restore.progress.ConsoleProgress`.

    Returns:
        Every file with its target and outcome, in the order of the inputs. The status of an outcome is "done", "kept"
        or "failed"; what is wrong with one file does not stop the others.

    Raises:
        TypeError: inputs that are no paths, such as arrays.
        UserError: nothing was begun because of an argument; or `inputs` is the name of one file, `output` that of its
            result, and it failed. In a list, one file too has its outcome.
        UnwrittenError: a UserError; all was done, but the manifest could not be written. It has the `results`.
    """
    _check_paths(inputs)
    progress = progress or Progress()
    options = _file_options(task, sigma, quality, max_megapixels, crf)
    settings = RestorerSettings(
        task=task,
        weights=None if weights is None else str(weights),
        device=device,
        tile=tile,
        overlap=overlap,
        strength=strength,
        luma=luma,
        chroma=chroma,
        ensemble=ensemble,
        precision=precision,
    )
    machines = _Machines(engine, workers, overwrite)
    machines.check()
    if manifest is not None and not isinstance(locations.location(manifest), Path):
        raise UserError(f"--manifest {manifest}: must be a local file; copy it there afterwards")
    plan = _plan(inputs, output, overwrite)
    if plan.passed_over:
        progress.note(f"note: {skipped_note(plan.passed_over)}")
    if plan.kept:
        progress.note(f"{len(plan.kept)} existing outputs stay as they are (--overwrite replaces them)")
    found = {}
    unlisted = None
    if plan.todo or manifest is not None:
        found, unlisted = _run(plan, settings, options, machines, manifest, progress)
    results = [Restored(*job, found.get(job, Outcome("kept"))) for job in plan.jobs]
    if unlisted is not None:
        raise UnwrittenError(unlisted, results)
    if plan.as_file and isinstance(inputs, str | Path) and results[0].outcome.status == "failed":
        raise UserError(results[0].outcome.message)
    return results


@dataclass(frozen=True)
class _Machines:
    """Where the work is done, and by how many workers."""

    engine: str
    workers: int | None
    overwrite: bool

    def check(self) -> None:
        if self.engine not in ("local", "ray"):
            raise UserError(f"unknown engine {self.engine!r}; known: local, ray")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers must be at least 1, got {self.workers}")


@dataclass(frozen=True)
class _Plan:
    """All jobs, those to do, those whose outputs exist and stay, and where outputs go."""

    jobs: list[Job]
    todo: list[Job]
    kept: list[Job]
    out: Location
    as_file: bool
    passed_over: "Counter[str]"  # files of other formats in folders and of patterns, by suffix


def _check_paths(inputs: Any) -> None:
    for one in inputs if isinstance(inputs, list | tuple) else [inputs]:
        if hasattr(one, "shape") or hasattr(one, "convert"):  # an array or a tensor; an image of Pillow
            raise TypeError(
                f"inputs: expected paths, got {type(one).__name__}; vheatir.Restorer(task).restore(array) takes arrays "
                "of floats in [0, 1]"
            )


def _plan(inputs: str | Path | Sequence[str | Path], output: str | Path, overwrite: bool) -> _Plan:
    only = _only_file(inputs, output) if _names_a_file(output) else None
    as_file = only is not None
    passed_over = Counter()
    if only is not None:
        jobs = [plan_file(only, output)]
        target = jobs[0].target
        out = target.parent if isinstance(target, Path) else target
        existing = {target} if target.exists() else set()
    else:
        jobs = plan_jobs([inputs] if isinstance(inputs, str | Path) else inputs, output, passed_over)
        out = locations.location(output)
        existing = set() if overwrite else locations.existing([job.target for job in jobs], out)
    if overwrite:
        existing = set()
    todo = [job for job in jobs if job.target not in existing]
    kept = [job for job in jobs if job.target in existing]
    return _Plan(jobs, todo, kept, out, as_file, passed_over)


def _only_file(inputs: str | Path | Sequence[str | Path], output: str | Path) -> str | Path:
    """The input where it is one file, named or by a pattern that nothing else matches; UserError where it is not."""
    texts = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not texts:
        raise UserError(f"no input was given for {output}; give a file")
    where = locations.location(texts[0])
    if len(texts) == 1 and not isinstance(where, Path):
        if not where.is_dir():
            return texts[0]
    elif len(texts) == 1 and isinstance(where, Path) and not where.is_dir():
        if where.exists() or not glob.has_magic(str(where)):
            return texts[0]
        found = [match for match in glob.glob(str(where), recursive=True) if Path(match).suffix.lower() in RESTORED]
        if len(found) == 1 and Path(found[0]).is_file():
            return found[0]
    raise UserError("the output is the name of a file, but folders and several files go into a folder; give a folder")


def _names_a_file(output: str | Path) -> bool:
    """Whether OUT means a file; UserError for a name of a format that is not written."""
    where = locations.location(output)
    suffix = where.suffix.lower()
    if suffix not in _NOT_WRITTEN and suffix not in RESTORED:
        return False
    if where.is_dir():
        return False
    if suffix in _NOT_WRITTEN:
        written = ", ".join(name for name in RESTORED if FORMATS.get(name) in DEPTHS or name in WRITTEN)
        raise UserError(
            f"{output}: {suffix} files are not written; give a name that ends in one of {written}, or a folder "
            "(one of this name must exist)"
        )
    return True


def _file_options(
    task: str, sigma: float | None, quality: float | None, max_megapixels: float, crf: float
) -> FileOptions:
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    takes = {"denoise": "--sigma", "jpeg": "--quality"}.get(task)
    given = {name: value for name, value in (("--sigma", sigma), ("--quality", quality)) if value is not None}
    for name in given:
        if name != takes:
            raise UserError(f"{name} does not belong to the task {task}; leave it out")
    level = given.get(takes) if takes else None
    if level is not None and not 0 <= level <= MAX_LEVEL[task]:
        raise UserError(f"the level must lie between 0 and {MAX_LEVEL[task]:g}, got {level:g}")
    if not max_megapixels > 0:
        raise UserError(f"--max-megapixels must be above 0, got {max_megapixels}")
    if not 0 <= crf <= MOST_CRF:
        raise UserError(f"--crf must lie between 0 and {MOST_CRF:g}, got {crf}")
    return FileOptions(level=level, max_pixels=round(min(max_megapixels, 1e9) * 1e6), crf=crf)


def _run(
    plan: _Plan,
    settings: RestorerSettings,
    options: FileOptions,
    machines: _Machines,
    manifest: str | Path | None,
    progress: Progress,
) -> tuple[dict[Job, Outcome], str | None]:
    """The outcomes of the jobs to do, and what went wrong with the manifest at the end."""
    restorer = settings.restorer() if plan.todo else None  # with Ray too: what is wrong shows before anything starts
    if restorer is not None and options.level is not None and not restorer.takes_level and restorer.task != "jpeg":
        progress.note("note: these weights are blind: --sigma and --quality have no effect on them")
    if isinstance(plan.out, Path):
        locations.make_folder(plan.out)
    listed = None if manifest is None else Manifest(Path(manifest), plan.jobs, plan.kept)
    try:
        found = {} if restorer is None else _do(plan.todo, restorer, settings, options, machines, listed, progress)
    except BaseException:
        if listed is not None and (refused := listed.close()) is not None:
            progress.note(printable(f"error: {refused}"))
        raise
    return found, None if listed is None else listed.close()


def _do(
    jobs: list[Job],
    restorer: Restorer,
    settings: RestorerSettings,
    options: FileOptions,
    machines: _Machines,
    manifest: Manifest | None,
    progress: Progress,
) -> dict[Job, Outcome]:
    progress.begin(jobs)
    try:
        how = {"progress": progress, "manifest": manifest}
        if machines.engine == "ray":
            overwrite = machines.overwrite
            found = run_on_ray(settings, jobs, options, workers=machines.workers, overwrite=overwrite, **how)
        else:
            found = run(restorer, jobs, options, workers=machines.workers or usual_workers(jobs), **how)
    finally:
        progress.end()
    return dict(zip(jobs, found, strict=True))
