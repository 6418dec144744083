"""leanseek average: the mean of several checkpoints' weights as a model folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from leanseek.errors import RunError, UsageError
from leanseek.log import progress, say
from leanseek.run import Run, model_folder


def average(
    model: Path,
    *others: Path,
    out: Annotated[Path, Parameter(name=["--out"])],
    stage: str | None = None,
    last: int | None = None,
) -> None:
    """Average the weights of checkpoints: the last ones of a run's stage, or any model folders of one shape.

    A run keeps as many checkpoints as its stage's `keep_checkpoints` says. The mean of the last few is often a little
    better than the last one, most of all where the learning rate was still high.

    Example: leanseek average runs/laptop --stage pretrain --last 4 --out averaged

    Args:
        model: A run folder, or a model folder.
        others: Further model folders; then the mean is of all that are named.
        out: Folder that is made, which must not have anything in it.
        stage: Of the run; without it, the last that has a checkpoint.
        last: How many of its newest checkpoints; without it, all that are there.
    """
    of_run = not others and Run.is_run(model)
    if not of_run and (stage is not None or last is not None):
        raise UsageError("--stage and --last choose among a run's checkpoints: give one run folder and nothing beside")
    if last is not None and last < 2:
        raise UsageError(f"--last {last}: at least 2 checkpoints have a mean")
    folders = _of_run(Run.open(model), stage, last) if of_run else [model_folder(path) for path in (model, *others)]
    if len(folders) < 2:
        raise UsageError(
            f"{folders[0]} alone has no mean: name another model folder, or a run with several checkpoints"
        )
    from leanseek.checkpoint.averaging import average_folders

    say(f"averaging {', '.join(folder.name for folder in folders)}")
    with progress(100, "averaging, %") as bar:
        average_folders(folders, out, lambda share: bar.advance(int(100 * share) - bar.done))
    print(f"{out}: the mean of {len(folders)} models")


def _of_run(run: Run, stage: str | None, last: int | None) -> list[Path]:
    """Return the checkpoints that are meant, oldest first."""
    if stage is None and (latest := run.latest()) is not None:
        stage = latest.name.rpartition("-")[0]
    found = run.checkpoints(stage) if stage is not None else []
    wanted = max(last or 0, 2)
    if len(found) < wanted:
        have = f"{len(found)} of {stage}" if stage is not None else "none"
        raise RunError(
            f"{run.folder} has {have}, and {wanted} checkpoints are needed: train with "
            f"--train.keep_checkpoints {wanted} and a --train.checkpoint_every that leaves so many"
        )
    return found[-last:] if last is not None else found
