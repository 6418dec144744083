"""Recipes: a TOML file, what it extends and the command line's overrides -> one frozen, checked Recipe."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from leanseek.errors import ConfigError, nearest

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Objective = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]
Effort = Literal["low", "high", "max"]
# Settings whose own keys are names that a recipe gives.
OPEN = ("levels", "stages")
# Kinds of the stages that a recipe may list between pretraining and evaluation.
Kind = Literal["sft", "grpo", "traces", "distill", "dpo"]
KINDS: tuple[str, ...] = get_args(Kind)
# The line of a recipe that lists no stages of its own.
STAGES = ("tokenizer", "pretrain", "sft", "grpo", "eval")
# What else summary.json has parts of, and the names that models go by: no stage may be called so.
RESERVED = (
    "accuracy", "contamination", "mtp", "plan", "totals", "machine", "model", "base", "n",
    "tokenizer", "pretrain", "eval",
)  # fmt: skip


Group = TypeVar("Group", bound="Settings")


class Settings(BaseModel):
    """A group of settings: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(Settings):
    """Where text comes from."""

    sources: tuple[str, ...] = Field((), description="folders or files of .txt/.jsonl; empty: the embedded corpus")
    shards: tuple[str, ...] = Field((), description="folders that leanseek data made, in place of sources")
    weights: tuple[float, ...] = Field((), description="how often each of them is drawn; empty: by their tokens")
    mask_documents: bool = Field(False, description="tokens of a window see their own document only (V3: all of it)")
    documents: int = Field(40_000, ge=1, description="documents that the embedded corpus generates")
    dialogues: float = Field(
        0.0, ge=0, le=1, description="embedded corpus: conversations, mostly hasty ones, for each of its documents"
    )
    sequence_tokens: int = Field(128, ge=8, description="tokens of one training sequence")
    validation_fraction: float = Field(0.02, gt=0, lt=0.5, description="share of documents kept for validation")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.sources and self.shards:
            raise ValueError("give sources or shards, not both")
        if self.weights and (len(self.weights) != len(self.shards) or min(self.weights) <= 0):
            raise ValueError(f"weights: {len(self.shards)} numbers above 0 are needed, one for each of shards")
        return self


class TokenizerSettings(Settings):
    """The byte-level BPE tokenizer."""

    vocab_size: int | None = Field(None, ge=300, description="tokens, special ones included; None: the model's")
    training_documents: int = Field(20_000, ge=1, description="documents that the vocabulary is learnt from")


class OptimiserSettings(Settings):
    """Muon for matrices and stacked experts, AdamW for the rest."""

    name: Literal["muon", "adamw"] = Field("muon", description="muon, or adamw for every parameter")
    lr: float = Field(0.02, gt=0, description="peak learning rate of Muon's matrices (of everything under adamw)")
    adamw_lr: float = Field(3e-3, gt=0, description="peak learning rate of embeddings, head, norms and router")
    weight_decay: float = Field(0.0, ge=0, description="share of a weight lost per step, times the learning rate")
    momentum: float = Field(0.95, ge=0, lt=1, description="of Muon")
    beta2: float = Field(0.95, gt=0, lt=1, description="of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")


class TrainSettings(Settings):
    """What pretraining, SFT and GRPO share: how long, how large a step, how often saved."""

    steps: int | None = Field(None, ge=1, description="optimiser steps; give this or minutes")
    minutes: float | None = Field(None, gt=0, description="time budget; steps follow from the measured speed")
    batch_sequences: int = Field(32, ge=1, description="windows (pretraining) or conversations (SFT) of a step")
    micro_tokens: int | None = Field(None, ge=1, description="tokens of one forward pass; None: the whole batch")
    most_logits: int | None = Field(
        None, ge=1, description="logits (tokens x vocabulary) in memory at once; None: all of a forward pass"
    )
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="share of steps in the linear warm-up")
    decay_fraction: float = Field(0.3, ge=0, le=1, description="share of steps in V3's cosine decay")
    final_lr_fraction: float = Field(0.1, ge=0, le=1, description="share of the peak learning rate left at the end")
    last_lr_fraction: float | None = Field(
        None, ge=0, le=1, description="share left in the last third of the constant tail (V3: 0.033); None: the same"
    )
    ramp_from: int | None = Field(
        None, ge=1, description="batch_sequences of the first step, growing linearly; None: no ramp (V3: a fifth)"
    )
    ramp_fraction: float = Field(0.03, gt=0, le=1, description="share of steps in which the batch grows (V3: 0.03)")
    skip_spikes: float | None = Field(
        None, gt=1, description="steps whose gradient is that many times its running mean are skipped; None: none are"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(1, ge=1, description="newest checkpoints of a stage that are kept")
    validate_every: int = Field(200, ge=1, description="steps between looks at held-back text or problems")
    balance_rate: float = Field(1e-3, ge=0, description="gamma of the router bias update (V3: 0.001)")
    balance_until: float = Field(1.0, ge=0, le=1, description="share of steps after which gamma is 0 (V3: 0.966)")
    balance_loss: float = Field(1e-4, ge=0, description="alpha of the sequence-wise balance loss (V3: 0.0001)")
    mtp_weight: float = Field(0.3, ge=0, description="lambda of the MTP loss (V3: 0.3, later 0.1); 0: not trained")
    late_mtp_weight: float | None = Field(
        None, ge=0, description="lambda after late_mtp_from (V3: 0.1); None: the same"
    )
    late_mtp_from: float = Field(0.676, ge=0, le=1, description="share of steps before that (V3: 10 of 14.8T tokens)")
    mtp_every: int = Field(1, ge=1, description="the MTP layer learns in every n-th step (V3: 1); it costs a third")
    recompute: bool = Field(
        False, description="blocks are computed anew for the gradient: less memory, a third more work"
    )
    fp8: bool = Field(False, description="products in FP8 as V3 has them, by emulation: the same numbers, slowly")
    optimiser: OptimiserSettings = OptimiserSettings()

    @model_validator(mode="after")
    def _steps_are_known(self) -> Self:
        for name in ("ramp_from", "late_mtp_weight"):
            if getattr(self, name) is not None and self.steps is None:
                raise ValueError(f"{name} needs steps, not minutes: what a step reads must follow from its number")
        return self

    @field_validator("ramp_from")
    @classmethod
    def _grows(cls, first: int | None, info: ValidationInfo) -> int | None:
        full = info.data.get("batch_sequences", first)
        if first is not None and full is not None and first > full:
            raise ValueError(f"at most batch_sequences = {full} is accepted, for the batch grows")
        return first


class LoraSettings(TrainSettings):
    """Training in full, or by low-rank updates."""

    lora_rank: int = Field(0, ge=0, description="rank of low-rank updates; 0: all weights are trained in full")
    lora_alpha: float = Field(32.0, gt=0, description="low-rank updates are multiplied by this over their rank")
    lora_targets: tuple[str, ...] = Field((), description="layers that get them, as q_proj; empty: every Linear")


class TuneSettings(LoraSettings):
    """Training on a file of one's own."""

    data: str | None = Field(None, description="your own .jsonl file, learnt from (docs/guides/fine-tuning.md)")
    passes: float = Field(3.0, gt=0, description="data: times that it is read, without steps and minutes")
    held_out: float = Field(0.05, ge=0, lt=1, description="data: share kept aside to measure by; 0: none")
    longest: int | None = Field(None, ge=8, description="data: most tokens of a line; None: the model's context")
    too_long: Literal["refuse", "cut"] = Field("refuse", description="data: longer ones are refused, or lose their end")


class SftSettings(TuneSettings):
    """Cold start: supervised fine-tuning on worked solutions, or on conversations of one's own."""

    traces_per_environment: int = Field(500, ge=1, description="worked solutions per task")
    traces: str | None = Field(
        None, description="stage of kind traces, or .jsonl file, learnt from in place of worked solutions"
    )
    hasty: float = Field(0.0, ge=0, le=1, description="chance after each line that a trace stops thinking and answers")
    enough: float | None = Field(None, gt=0, le=1, description="accuracy on unseen training problems that ends SFT")
    development_problems: int = Field(96, ge=1, description="problems per task that this accuracy is measured on")


class GrpoSettings(LoraSettings):
    """Reinforcement learning with verifiable rewards."""

    start: str | None = Field(None, description="model folder to start from, in place of the SFT stage's model")
    cold_start: bool = Field(False, description="with start: fine-tune on worked solutions first, as [sft] has it")
    objective: Objective = Field("dapo", description="what the next five follow: grpo, dr_grpo, dapo, gspo or cispo")
    advantages: Literal["normalised", "centred"] | None = Field(
        None, description="whether they are divided by their group's spread; None: the objective's way"
    )
    ratio: Literal["token", "reply", "weight"] | None = Field(
        None, description="clipped by token, by reply (GSPO), or as a fixed weight (CISPO); None: the objective's way"
    )
    average: Literal["tokens", "replies", "constant"] | None = Field(
        None, description="mean over all tokens, over replies' means, or by max_new_tokens; None: the objective's way"
    )
    clip_low: float | None = Field(
        None, gt=0, description="how far below 1 the probability ratio counts; None: the objective's way (dapo 0.2)"
    )
    clip_high: float | None = Field(
        None, gt=0, description="how far above 1 it counts: clip-higher; None: the objective's way (dapo 0.28)"
    )
    prompts_per_step: int = Field(64, ge=1, description="problems of a step")
    samples_per_prompt: int = Field(8, ge=2, description="replies per problem, the group that is compared")
    max_new_tokens: int = Field(
        64, ge=1, description="longest reply, or all of a conversation after its prompt, in tokens"
    )
    temperature: float = Field(1.0, gt=0, description="of the samples")
    top_p: float = Field(1.0, gt=0, le=1, description="of the samples: the likeliest tokens up to this share; 1: all")
    top_k: int = Field(0, ge=0, description="of the samples: how many of the likeliest tokens; 0: all")
    keep_sampling_mask: bool = Field(
        True, description="with top_p or top_k: learn on the shares among the tokens that could have been drawn"
    )
    drafts: int = Field(0, ge=0, description="tokens that the MTP layer drafts in rollouts, where that pays; 0: none")
    staleness: int = Field(
        0, ge=0, le=64, description="steps that samples may be older than the model that learns; 0: sample, then learn"
    )
    cluster: int = Field(0, ge=0, le=4096, description="rollout workers on a Ray cluster; 0: samples are drawn here")
    cluster_address: str = Field("local", description="of the Ray cluster; auto: this machine's; local: started here")
    refill: int = Field(0, ge=0, le=64, description="further draws of problems for those that taught nothing; 0: none")
    epochs: int = Field(1, ge=1, description="times that a step's samples are learnt from")
    minibatches: int = Field(1, ge=1, description="optimiser steps that a pass over a step's samples is parted into")
    off_policy: float | None = Field(
        None,
        gt=0,
        description="V3.2's delta: bad replies that far from the sampling policy are masked; None: none is, "
        "but with staleness those beyond 0.5",
    )
    kl_weight: float = Field(0.0, ge=0, description="weight of the KL to the SFT model; 0: none")
    most_reward_errors: float = Field(
        0.5, ge=0, le=1, description="share of a step's rewards that may fail (they count as 0) before the run stops"
    )
    format_reward: float = Field(0.0, ge=0, description="bonus for a well-formed reply")
    language: str | None = Field(None, description="language that replies are to think in, as en, ru or zh; None: any")
    language_reward: float = Field(0.1, ge=0, description="weight of the share of words in that language (R1)")
    rubric: dict[str, float] = Field({}, description="check of a reply (as sound, brief) -> its weight in the reward")
    judge: str | None = Field(None, description="URL of a server whose model grades right replies; None: none does")
    judge_model: str | None = Field(None, description="the judge's name there; None: the first that it lists")
    judge_wishes: str = Field(
        "The thinking is short, orderly and easy to follow.", description="what the judge grades by, in words"
    )
    judge_reward: float = Field(0.5, ge=0, description="what its best grade adds to a right reply's reward")
    length_reward: float = Field(
        0.0, ge=0, description="with efforts: what a longest reply loses at low effort, less at higher ones; 0: nothing"
    )
    overlong_tokens: int = Field(
        0, ge=0, description="last tokens of max_new_tokens over which DAPO's penalty grows to 1; 0: no penalty"
    )
    replay_routing: bool = Field(True, description="train on the experts that sampling chose")
    sort_by_length: bool = Field(False, description="share a step among workers longest groups first, evenly")
    development_problems: int = Field(96, ge=1, description="problems per task of the accuracy shown on the way")

    @field_validator("overlong_tokens")
    @classmethod
    def _within_the_reply(cls, tokens: int, info: ValidationInfo) -> int:
        longest = info.data.get("max_new_tokens", tokens)
        if tokens > longest:
            raise ValueError(f"at most max_new_tokens = {longest} is accepted")
        return tokens

    @field_validator("minibatches")
    @classmethod
    def _a_group_each(cls, parts: int, info: ValidationInfo) -> int:
        groups = info.data.get("prompts_per_step", parts)
        if parts > groups:
            raise ValueError(f"at most prompts_per_step = {groups} is accepted, for groups stay whole")
        return parts

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_run(cls, values: Any) -> Any:
        """Read the clips that runs had spelt out before objectives had names as what they are now: dapo's own."""
        clips = {"clip_low": 0.2, "clip_high": 0.28}
        if isinstance(values, dict) and "objective" not in values and clips.items() <= values.items():
            return {key: value for key, value in values.items() if key not in clips}
        return values


class TracesSettings(Settings):
    """Replies drawn from a teacher and kept where they are right: rejection sampling, and data for distillation."""

    teacher: str | None = Field(
        None, description="who replies: a stage, a model folder or the URL of a server; None: the stage before"
    )
    model: str | None = Field(None, description="at a URL: the model's name there; None: the first that it lists")
    licence: str = Field("", description="at a URL: what its terms say of training on its replies, to be recorded")
    problems: int = Field(500, ge=1, description="training problems per task, each another one")
    samples: int = Field(4, ge=1, description="replies per problem")
    keep: int = Field(1, ge=1, description="most replies of a problem that are kept, the shortest right ones")
    sound: bool = Field(False, description="only those whose thinking the task's audit finds right line by line")
    easiest: float = Field(
        1.0, gt=0, le=1, description="problems that a larger share of the replies solves are left out"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest reply, in tokens")
    temperature: float = Field(1.0, ge=0, description="of the replies")
    at_once: int = Field(8, ge=1, le=256, description="at a URL: requests that are under way together")


class DistillSettings(TrainSettings):
    """A student learns all of a teacher's next-token distribution, on given replies or on its own."""

    teachers: tuple[str, ...] = Field((), description="stages or model folders; a stage teaches the tasks it had")
    method: Literal["logits", "on_policy"] = Field(
        "on_policy", description="logits: KL from teacher to student on given replies; on_policy: back, on its own"
    )
    traces: str | None = Field(None, description="logits: stage or file of replies; None: worked solutions")
    traces_per_environment: int = Field(500, ge=1, description="logits without traces: worked solutions per task")
    prompts_per_step: int = Field(32, ge=1, description="on_policy: problems of a step")
    samples_per_prompt: int = Field(2, ge=1, description="on_policy: replies per problem")
    max_new_tokens: int = Field(64, ge=1, description="on_policy: longest reply, in tokens")
    temperature: float = Field(1.0, gt=0, description="that both distributions are softened by")
    most_logits: int | None = Field(4_000_000, ge=1, description="logits (tokens x vocabulary) in memory at once")
    development_problems: int = Field(96, ge=1, description="problems per task of the accuracy shown on the way")


class DpoSettings(TuneSettings):
    """Preference optimisation on pairs of one's own: a better reply against a worse one."""

    beta: float = Field(0.1, gt=0, description="how dear it is to leave the model that the stage starts from")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="chance that a pair is the wrong way round")


class StageSettings(BaseModel):
    """A stage of a recipe's own line. Beside these, it has any setting of its kind's section, for itself alone."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Kind | None = Field(None, description="sft, grpo, traces, distill or dpo; None: its name")
    after: str | None = Field(None, description="stage whose model it starts from; None: the training stage before it")
    environments: tuple[str, ...] = Field((), description="its tasks; empty: the recipe's")

    @property
    def own(self) -> dict[str, Any]:
        """Settings that it has for itself, laid over its kind's section."""
        return dict(self.model_extra or {})


class EvalSettings(Settings):
    """Held-out evaluation."""

    problems: int = Field(512, ge=1, description="held-out problems per environment")
    samples: int = Field(4, ge=1, description="samples per problem for pass@k")
    max_new_tokens: int = Field(64, ge=1, description="longest reply, in tokens")


class CostSettings(Settings):
    """What a run is charged for."""

    usd_per_hour: float = Field(0.05, ge=0, description="price of the machine")
    hardware: str | None = Field(None, description="row of hardware.toml; None: this machine")
    grid: str | None = Field(None, description="whose electricity: a row of grids.toml, or grams of CO2 for a kWh")


class CardSettings(Settings):
    """What only a person can say in the model card."""

    license: str = Field("mit", description="licence of the model's weights, as Hugging Face spells it")
    data_license: str | None = Field(None, description="licences of data.sources; needed where there are any")
    intended_use: str | None = Field(None, description="what the model is for; None: research and teaching")


class ParallelSettings(Settings):
    """How the processes that torchrun started share pretraining; one process alone has all."""

    ranks: int | None = Field(None, ge=1, description="processes that there must be; None: as many as torchrun starts")
    experts: int = Field(1, ge=1, description="ranks that share the routed experts of every layer")
    shards: int = Field(1, ge=1, description="ranks that share all other weights and the optimiser's state (FSDP2)")


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
    eval: EvalSettings = EvalSettings()
    cost: CostSettings = CostSettings()
    card: CardSettings = CardSettings()
    parallel: ParallelSettings = ParallelSettings()

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
