"""leanseek distill: a student learns from a teacher, a model folder or a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from leanseek.cli.make import Options, Settings, work
from leanseek.errors import UsageError
from leanseek.run import Run, model_folder

RECIPE = "distiller"
Method = Literal["on_policy", "logits", "traces"]


def distill(
    recipe: str | None = None,
    *,
    teacher: str | None = None,
    method: Method = "on_policy",
    env: tuple[str, ...] = (),
    options: Options = Options(),
    settings: Settings,
) -> None:
    """Teach a student what a teacher knows: on the student's own replies, on the teacher's, or from their text alone.

    The student is --model FOLDER: a run folder or any model folder that loads. on_policy and logits compare whole
    distributions, so both need the same tokenizer; traces are text, and the teacher may be any server that speaks
    OpenAI's protocol, by its URL (its key in LEANSEEK_TEACHER_KEY). What a server said is kept in the run folder
    with who it was, when and how it was asked. Any setting is an option, --train.X being --distill.X.

    Example: leanseek distill --teacher runs/evening --model runs/small --env countdown --run runs/taught

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or distiller.
        teacher: Who is learnt from: a run folder, a model folder, or for traces the URL of a server.
        method: on_policy, logits or traces.
        env: Task that prompts are of, by its name or the dotted name of a module; may be given several times.
    """
    settings = dict(settings)
    if env:
        settings["environments"] = [name for names in env for name in names.split(",")]
    folder = options.run or Path("runs") / RECIPE
    goes_on = Run.is_run(folder) and not options.fresh
    model = settings.get("model")
    if teacher is None and not (goes_on and recipe is None):
        raise UsageError("whose knowledge? give --teacher FOLDER, or with --method traces a server's URL")
    if teacher is not None:
        if model is None or not Path(model).exists():
            raise UsageError("who learns? give --model FOLDER, a run folder or a model folder that loads")
        start = model_folder(model).resolve()
        own = {"model": str(start / "config.json"), "grpo.start": str(start)}
        settings = _stages(method, teacher) | settings | own
        recipe = recipe or RECIPE
    work("distill", "eval", recipe, replace(options, run=folder), settings)


def _stages(method: Method, teacher: str) -> dict[str, Any]:
    """Return the line of a method, as settings."""
    server = teacher.startswith(("http://", "https://"))
    if server and method != "traces":
        raise UsageError(f"a server tells its words, not its distribution: --method traces, not {method}")
    who = teacher if server else str(model_folder(teacher).resolve())
    if method == "on_policy":
        return {"distill.teachers": [who], "stages": {"distill": {"method": "on_policy"}}}
    drawn = {"traces": {"teacher": who}}
    if method == "traces":
        return {"stages": drawn | {"sft": {"traces": "traces"}}}
    return {"distill.teachers": [who], "stages": drawn | {"distill": {"method": "logits", "traces": "traces"}}}
