"""Recipes: a TOML file, what it extends and the command line's overrides -> one frozen, checked Recipe."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from leanseek.errors import ConfigError, nearest
from leanseek.sections.account import CardSettings, CostSettings, EvalSettings, TrackSettings
from leanseek.sections.data import DataSettings, TokenizerSettings
from leanseek.sections.distillation import DistillSettings, TracesSettings
from leanseek.sections.group import Settings
from leanseek.sections.grpo import GrpoSettings
from leanseek.sections.training import ExtendSettings, ParallelSettings, TrainSettings
from leanseek.sections.tuning import DpoSettings, SftSettings

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Effort = Literal["low", "high", "max"]
# Settings whose own keys are names that a recipe gives.
OPEN = ("levels", "stages")
# Kinds of the stages that a recipe may list between pretraining and evaluation.
Kind = Literal["sft", "grpo", "traces", "distill", "dpo", "extend"]
KINDS: tuple[str, ...] = get_args(Kind)
# The line of a recipe that lists no stages of its own.
STAGES = ("tokenizer", "pretrain", "sft", "grpo", "eval")
# What else summary.json has parts of, and the names that models go by: no stage may be called so.
RESERVED = (
    "accuracy", "contamination", "mtp", "plan", "totals", "machine", "model", "base", "n",
    "tokenizer", "pretrain", "eval",
)  # fmt: skip


Group = TypeVar("Group", bound=Settings)


class StageSettings(BaseModel):
    """A stage of a recipe's own line. Beside these, it has any setting of its kind's section, for itself alone."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Kind | None = Field(None, description="sft, grpo, traces, distill, dpo or extend; None: its name")
    after: str | None = Field(None, description="stage whose model it starts from; None: the training stage before it")
    environments: tuple[str, ...] = Field((), description="its tasks; empty: the recipe's")

    @property
    def own(self) -> dict[str, Any]:
        """Settings that it has for itself, laid over its kind's section."""
        return dict(self.model_extra or {})


class Recipe(Settings):
    """A whole run: which model, which tasks, and every stage's settings."""

    name: str = Field("custom", description="of the run; default: the recipe file's")
    model: str = Field("laptop", description="preset, or a path to a config.json")
    environments: tuple[str, ...] = Field(("countdown",), description="tasks that the run trains on and is judged by")
    levels: dict[str, tuple[int, ...]] = Field({}, description="environment -> levels used; default: all")
    efforts: tuple[Effort, ...] = Field(
        (), description="efforts (low, high, max) that prompts ask for in turn; the last is evaluated; empty: none"
    )
    stages: dict[str, StageSettings] = Field(
        {}, description="name -> stage between pretraining and evaluation, in order; empty: sft, then grpo"
    )
    seed: int = Field(0, description="of weights, data and samples")
    device: Device = Field("cpu", description="where the model runs")
    dtype: Dtype = Field("float32", description="what the weights are kept in")
    threads: int | None = Field(None, ge=1, description="CPU threads; None: all that this process may use")
    data: DataSettings = DataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    pretrain: TrainSettings = TrainSettings()
    sft: SftSettings = SftSettings()
    grpo: GrpoSettings = GrpoSettings()
    traces: TracesSettings = TracesSettings()
    distill: DistillSettings = DistillSettings()
    dpo: DpoSettings = DpoSettings()
    extend: ExtendSettings = ExtendSettings()
    eval: EvalSettings = EvalSettings()
    cost: CostSettings = CostSettings()
    card: CardSettings = CardSettings()
    parallel: ParallelSettings = ParallelSettings()
    track: TrackSettings = TrackSettings()

    @property
    def line(self) -> dict[str, str]:
        """The stages that a run is made of, in order: name -> kind. Those before a model folder's are left out."""
        start = self.grpo.start is not None
        if self.stages:
            inner = {name: stage.kind or name for name, stage in self.stages.items()}
        else:
            inner = {name: name for name in (("grpo",) if start and not self.grpo.cold_start else ("sft", "grpo"))}
        first = {} if start else {"tokenizer": "tokenizer", "pretrain": "pretrain"}
        return {**first, **inner, "eval": "eval"}

    def before(self, name: str) -> str | None:
        """Return the stage whose model a stage starts from; None: fresh weights, or the folder `grpo.start`."""
        own = self.stages.get(name)
        if own is not None and own.after is not None:
            return None if own.after == "pretrain" and "pretrain" not in self.line else own.after
        earlier = [other for other, kind in _until(self.line, name) if kind not in ("tokenizer", "traces")]
        return earlier[-1] if earlier else None

    def settings_of(self, name: str, kind: type[Group]) -> Group:
        """Return a stage's settings: its kind's section with its own ones over it.

        Args:
            name: of the stage.
            kind: class of the section, which every stage of that kind has.
        Raises:
            ValidationError: a setting that its kind does not have, or a value that is not acceptable.
        """
        section = getattr(self, self.line[name])
        own = self.stages[name].own if name in self.stages else {}
        found = type(section).model_validate(_merge(section.model_dump(), own)) if own else section
        assert isinstance(found, kind), f"{name} is of kind {self.line[name]}"
        return found

    def environments_of(self, name: str) -> tuple[str, ...]:
        """Return the tasks of a stage: its own, or the recipe's."""
        own = self.stages.get(name)
        return own.environments if own is not None and own.environments else self.environments


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with leanseek."""
    folder = resources.files("leanseek") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Load a recipe by name or path and lay `overrides` over it.

    Args:
        name_or_path: the name of an embedded recipe, or the path of a TOML file.
        overrides: dotted key -> value (text is parsed as TOML where it can be), e.g. {"grpo.steps": "40"}.
    Raises:
        ConfigError: no such recipe, not TOML, an unknown key or a value that is not acceptable.
    """
    path = _find(name_or_path)
    values = _read(path, seen=())
    values.setdefault("name", path.name.removesuffix(".toml"))
    known = set(dotted_keys())
    for key, value in (overrides or {}).items():
        parts = key.replace("-", "_").split(".")
        if parts == ["stages"]:  # a whole line in place of the recipe's
            values["stages"] = value
            continue
        if parts[0] not in OPEN and ".".join(parts) not in known:
            raise ConfigError(f"--{key} is not a setting{nearest('.'.join(parts), known)}")
        node = values
        for part in parts[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):  # the file has a value where a section belongs, and is told so
                _validate(values, str(name_or_path))
        node[parts[-1]] = _parse(value)
    return _validate(values, str(name_or_path))


def parse_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check a recipe's values that are already at hand (a run folder's resolved recipe, for one).

    Raises:
        ConfigError: an unknown key or a value that is not acceptable.
    """
    return _validate(dict(values), where)


def dotted_keys(settings: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Yield every setting's dotted name, such as `grpo.optimiser.lr`."""
    for name, field in settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if text.endswith(".toml") or "/" in text:
        path = Path(text)
        if not path.is_file():
            raise ConfigError(f"{text}: there is no such recipe file")
        return path
    names = recipe_names()
    if text not in names:
        raise ConfigError(f"recipe {text!r} is not known{nearest(text, names)}; have {', '.join(names)}")
    return Path(str(resources.files("leanseek") / "recipes" / f"{text}.toml"))


def _read(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path in seen:
        raise ConfigError(f"{path}: recipes extend each other in a circle")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from None
    parent = values.pop("extends", None)
    if parent is None:
        return values
    near = path.parent / f"{parent}.toml"
    return _merge(_read(near if near.is_file() else _find(parent), (*seen, path)), values)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def _parse(value: Any) -> Any:
    """Read a command-line text as a TOML value; what is not TOML is a string."""
    if not isinstance(value, str):
        return value
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _validate(values: dict[str, Any], where: str) -> Recipe:
    data = values.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("sources"), str):
        values = {**values, "data": {**data, "sources": [data["sources"]]}}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_problems(error)}") from None
    _check_line(recipe, where)
    return recipe


def _problems(error: ValidationError, prefix: str = "", below: str = "") -> str:
    """Say what is wrong with values, by their dotted names.

    Args:
        error: what pydantic found.
        prefix: before each name.
        below: the section whose names are meant; "": the whole recipe's.
    """
    keys = [key.removeprefix(below) for key in dotted_keys() if key.startswith(below)]
    sections = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    known = [*sorted(sections), *keys]
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            problems.append(f"{prefix}{key} is not a setting{nearest(key, known)}")
        else:
            problems.append(f"{prefix}{key} = {item['input']!r}: {item['msg'].lower()}")
    return "; ".join(problems)


def _check_line(recipe: Recipe, where: str) -> None:
    """Refuse stages that cannot be made one after the other."""
    made = {name for name, kind in recipe.line.items() if kind == "pretrain"} | {"pretrain"}
    sampled: set[str] = set()
    for name, stage in recipe.stages.items():
        told = f"{where}: stages.{name}"
        if name in RESERVED or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigError(f"{told}: a stage's name is of a-z, 0-9 and _, and none of {', '.join(RESERVED)}")
        if stage.kind is None and name not in KINDS:
            raise ConfigError(f"{told} has no kind; have {', '.join(KINDS)}")
        if name in KINDS and stage.kind not in (None, name):
            raise ConfigError(f"{told}: its kind is {stage.kind}, so it cannot be called {name}")
        if stage.after is not None and stage.after not in made:
            raise ConfigError(
                f"{told}.after = {stage.after!r}: no model is made there before{nearest(stage.after, made)}; "
                f"have {', '.join(sorted(made))}"
            )
        kind = stage.kind or name
        try:
            settings = recipe.settings_of(name, Settings)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_problems(error, f'stages.{name}.', f'{kind}.')}") from None
        traces = getattr(settings, "traces", None)
        if traces is not None and not traces.endswith(".jsonl") and traces not in sampled:
            have = f"; have {', '.join(sorted(sampled))}" if sampled else ""
            raise ConfigError(f"{told}.traces = {traces!r}: neither a .jsonl file nor an earlier stage of traces{have}")
        if kind == "traces":
            sampled.add(name)
        else:
            made.add(name)


def _until(line: Mapping[str, str], name: str) -> Iterator[tuple[str, str]]:
    """Yield the stages before one."""
    for item in line.items():
        if item[0] == name:
            return
        yield item
