"""Stages: the line from corpus to card; each is made once, charged to the ledger, and resumed where it stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import psutil
import torch

import leanseek
from leanseek.checkpoint.directory import empty_model
from leanseek.cost.carbon import parse_grid
from leanseek.cost.card import model_card
from leanseek.cost.energy import EnergyMeter
from leanseek.cost.ledger import Charge, Ledger
from leanseek.cost.rates import load_rates
from leanseek.cost.spending import Spending, peak_flops
from leanseek.data.contamination import Contamination, contamination
from leanseek.data.dialogues import read_dialogues
from leanseek.data.preferences import read_preferences
from leanseek.data.shards import provenance, read_index
from leanseek.data.sources import DATASET, read_file, source_files
from leanseek.data.tokens import TokenisedCorpus, adopt_shards, load_corpus, recipe_documents, tokenise, train_tokenizer
from leanseek.data.traces import TRACE_SEED
from leanseek.envs.environment import Environment, load_environment
from leanseek.errors import ConfigError, DataError, RunError, nearest
from leanseek.evals.accuracy import distinct_problems
from leanseek.evals.evaluation import development_accuracy, evaluate_run
from leanseek.evals.report import write_report
from leanseek.files import append_line, write_atomic
from leanseek.forecast import as_summary, forecast
from leanseek.kernels.threads import available_threads, return_memory, share_out
from leanseek.log import RunLog, say
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.count import parameters, training_flops_per_token
from leanseek.model.transformer import Transformer
from leanseek.rl.collect import collect
from leanseek.rl.distillation import distill
from leanseek.rl.grpo import grpo
from leanseek.rl.language import scripts_of
from leanseek.rl.rubric import check_rubric
from leanseek.run import STAGES, Run, stages_of
from leanseek.sections.distillation import DistillSettings
from leanseek.sections.group import Settings as SettingsGroup
from leanseek.sections.grpo import GrpoSettings
from leanseek.sections.training import TrainSettings
from leanseek.sections.tuning import DpoSettings, SftSettings
from leanseek.settings import Recipe
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.trackers import check_trackers, open_trackers
from leanseek.train.extension import extend
from leanseek.train.places import check as check_ranks
from leanseek.train.places import check_batch, least_ranks
from leanseek.train.preference import dpo
from leanseek.train.pretrain import pretrain
from leanseek.train.ranks import Ranks, join
from leanseek.train.sft import sft
from leanseek.train.spread import spread
from leanseek.train.stage import Stage
from leanseek.train.tune import tune
from leanseek.units import format_seconds
from leanseek.variables import torchrun

# Of one weight: itself, its gradient and AdamW's two moments, all fp32; or itself and its gradient in bf16, with an
# fp32 master and moments. Muon keeps one moment less.
TRAINING_BYTES = 16
# What several processes make together: the first one alone turns the corpus into tokens, then all pretrain.
TOGETHER = ("tokenizer", "pretrain", "extend")


def join_ranks(recipe: Recipe, until: str) -> Ranks | None:
    """Meet the other processes that torchrun has started; None: this one is alone.

    Raises:
        ConfigError: the recipe's `parallel` does not fit the model or the number of processes, or a stage is wanted
            that only one process can make.
    """
    config, count = load_preset(recipe.model), torchrun("WORLD_SIZE", 1)
    check_ranks(recipe.parallel, count, config)
    _check_batches(recipe, count)
    if recipe.parallel.experts > 1 and recipe.pretrain.fp8:
        raise ConfigError("pretrain.fp8 and parallel.experts exclude each other: emulated FP8 has all experts here")
    if count == 1:
        return None
    line = stages_of(recipe)
    for name in line[: line.index(until) + 1] if until in line else [until]:
        if recipe.line.get(name, name) not in TOGETHER:
            raise ConfigError(
                f"torchrun has started {count} processes, but {name} is made by one; several can make "
                f"{', '.join(TOGETHER)}: call leanseek up to the stage before it, then the rest without torchrun"
            )
    return join(recipe.parallel, config, recipe.device)


def _check_batches(recipe: Recipe, count: int) -> None:
    """Refuse a pipeline that the batches of a stage do not fill."""
    for name, kind in recipe.line.items():
        if kind in TOGETHER[1:]:
            check_batch(recipe.parallel, count, recipe.settings_of(name, TrainSettings).batch_sequences, name)


def make(run: Run, until: str = "eval", ranks: Ranks | None = None) -> None:
    """Make every stage up to `until` that a run folder lacks, going on with one that was stopped.

    Args:
        run: its folder is written; no other process may work on it.
        until: one of the recipe's stages.
        ranks: processes that train together, from `join_ranks`; the first makes the run, the others train along.
    Raises:
        RunError: no such stage, or the folder is in use or in a state that a stage cannot go on from.
        KeyboardInterrupt: Ctrl-C; what was done is saved.
    """
    planned = stages_of(run.recipe)
    if until not in STAGES and until not in planned:
        raise RunError(f"stage {until!r} is not known{nearest(until, planned)}; have {', '.join(planned)}")
    if until not in planned and run.recipe.grpo.start is None:
        raise RunError(f"{run.folder} is made in stages of its own: give one of {', '.join(planned)}, or leanseek make")
    if until not in planned:
        raise RunError(
            f"{run.folder} starts from the model {run.recipe.grpo.start}: it has no stage {until!r}, only "
            f"{', '.join(planned)}"
        )
    if ranks is not None and not ranks.first:
        _train_along(run, ranks)
        return
    with run.lock():
        line = _Line(run, ranks)
        _foretell(run)
        with closing(line.log):
            for name in planned[: planned.index(until) + 1]:
                if run.stage_done(name):
                    say(f"{name}: done already")
                else:
                    line.make(name)
    if ranks is not None:
        ranks.tell("")


def _train_along(run: Run, ranks: Ranks) -> None:
    """Do what ranks other than the first do: wait until there is a corpus, then take part."""
    while name := ranks.tell():
        ranks.share_threads(run.recipe.threads)
        tokenizer, log = _tokenizer_of(run), RunLog(run.metrics_path)
        meter = _energy_meter(run.recipe, beside=torchrun("LOCAL_RANK", 0) > 0)
        meter.start()
        learn = {"pretrain": pretrain, "extend": extend}[run.recipe.line[name]]
        learn(Stage(run, name, tokenizer, log, Charge(name), ranks=ranks), load_corpus(run.recipe, run.corpus_folder))
        ranks.total(torch.tensor(meter.read_joules(), dtype=torch.float64, device=run.recipe.device))
        meter.stop()


def _tokenizer_of(run: Run) -> Tokenizer:
    tokenizer = Tokenizer.load(run.recipe.grpo.start or run.tokenizer_folder)
    if run.recipe.efforts:  # kept with every checkpoint, so that who serves it knows
        tokenizer.efforts = run.recipe.efforts
    return tokenizer


def _energy_meter(recipe: Recipe, *, beside: bool = False) -> EnergyMeter:
    """Return what counts this process's energy; `beside`: as `EnergyMeter`."""
    cuda = recipe.device == "cuda"
    return EnergyMeter(
        recipe.device,
        recipe.cost.hardware,
        gpu_name=torch.cuda.get_device_name() if cuda else None,
        gpu_uuid=f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}" if cuda else None,
        beside=beside,
    )


def _foretell(run: Run) -> None:
    """Write down what the stages should take, where this machine has been measured and nothing is done yet."""
    try:
        rates = load_rates()
    except ConfigError as error:
        say(f"not planned: {error}")
        return
    if rates is None or run.recipe.grpo.start is not None or run.recipe.device != "cpu" or run.summary:
        return
    planned = forecast(run.recipe, rates)
    run.update("plan", as_summary(planned))
    say("planned: " + ", ".join(f"{one.stage} {format_seconds(one.seconds)}" for one in planned))


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """Say what a recipe would make and how much work that is, without training; nothing is written.

    Raises:
        ConfigError: the model or an environment is not known, or they do not fit together.
    """
    config = load_preset(recipe.model)
    _check(recipe)
    _check_sources(recipe)
    world = max(torchrun("WORLD_SIZE", 1), least_ranks(recipe.parallel))
    check_ranks(recipe.parallel, world, config)
    _check_batches(recipe, world)
    with torch.device("meta"):
        model = empty_model(config, dtype=recipe.dtype)
    bytes_of_weights = sum(p.numel() * p.element_size() for p in model.parameters())
    counted = parameters(config)
    length = recipe.data.sequence_tokens
    window_tokens = recipe.pretrain.batch_sequences * length
    per_token = training_flops_per_token(config, length, mtp=recipe.pretrain.mtp_weight > 0)
    steps = recipe.pretrain.steps
    grpo_samples = recipe.grpo.prompts_per_step * recipe.grpo.samples_per_prompt
    plan = {
        "recipe": recipe.name,
        "model": recipe.model,
        "device": recipe.device,
        "dtype": recipe.dtype,
        "parameters": counted.total,
        "mtp_parameters": counted.mtp,
        "active_parameters": counted.active,
        "weights_bytes": bytes_of_weights,
        "training_state_bytes": sum(p.numel() for p in model.parameters()) * TRAINING_BYTES,
        "pretrain_steps": steps,
        "pretrain_minutes": recipe.pretrain.minutes,
        "pretrain_tokens_per_step": window_tokens,
        "pretrain_tokens": None if steps is None else steps * window_tokens,
        "training_flops_per_token": per_token,
        "pretrain_flops": None if steps is None else steps * window_tokens * per_token,
        "sft_steps": recipe.sft.steps,
        "sft_minutes": recipe.sft.minutes,
        "grpo_steps": recipe.grpo.steps,
        "grpo_minutes": recipe.grpo.minutes,
        "grpo_samples_per_step": grpo_samples,
        "environments": list(recipe.environments),
    }
    skipped = tuple(f"{kind}_" for kind in STAGES if kind not in recipe.line)
    plan = {key: value for key, value in plan.items() if not key.startswith(skipped)}
    if world > 1:
        shapes = [(name, tuple(one.shape)) for name, one in model.named_parameters()]
        plan |= spread(recipe, config, shapes, world, TRAINING_BYTES)
    if recipe.stages:
        plan["stages"] = [_in_words(recipe, name) for name in recipe.line]
    return plan if recipe.grpo.start is None else plan | {"start": recipe.grpo.start}


def _in_words(recipe: Recipe, name: str) -> str:
    """Say what a stage is, and where it starts."""
    kind, before = recipe.line[name], recipe.before(name)
    if kind in ("tokenizer", "pretrain", "eval"):
        return name
    steps = getattr(recipe.settings_of(name, SettingsGroup), "steps", None)
    facts = [kind] if kind != name else []
    facts += [f"{steps} steps"] if steps is not None else []
    facts += [f"{'by' if kind == 'traces' else 'from'} {before}"] if before is not None else []
    return f"{name} ({', '.join(facts)})" if facts else name


class _Line:
    """A run's stages, with what they share."""

    def __init__(self, run: Run, ranks: Ranks | None = None) -> None:
        recipe = run.recipe
        _check(recipe)
        if recipe.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device = 'cuda', but torch finds no CUDA device here; use --device cpu, or --dry-run")
        self.run, self.recipe, self.ranks = run, recipe, ranks
        if ranks is None:
            self.workers = share_out(recipe.threads, recipe.device)
        else:
            self.workers = ranks.share_threads(recipe.threads)
        self.log = RunLog(run.metrics_path, trackers=open_trackers(run.folder, recipe.track))
        meter = _energy_meter(recipe)
        grid = None if recipe.cost.grid is None else parse_grid(recipe.cost.grid)
        self.ledger = Ledger(run.ledger_path, recipe.cost.usd_per_hour, recipe.device, meter=meter, grid=grid)
        self.environments: list[Environment] = [load_environment(name) for name in recipe.environments]

    def make(self, name: str) -> None:
        """Make one stage, charge it, and write its figures down."""
        makers: dict[str, Callable[[str, Charge], dict[str, Any]]] = {
            "tokenizer": self._tokenizer,
            "pretrain": self._pretrain,
            "sft": self._sft,
            "grpo": self._grpo,
            "traces": self._traces,
            "distill": self._distill,
            "dpo": self._dpo,
            "extend": self._extend,
            "eval": self._eval,
        }
        say(f"{name}: {'going on' if self.run.stage_begun(name) else 'starting'}")
        start_s = time.monotonic()
        if self.recipe.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with self.ledger.charge(name) as charge:
            figures = makers[self.recipe.line[name]](name, charge)
            if self.recipe.device == "cuda":
                charge.device_peak_memory_bytes = torch.cuda.max_memory_allocated()
        self.run.finish(name, {**self.ledger.totals()[name], **figures})
        self._summarise()
        return_memory()
        say(f"{name}: done in {format_seconds(time.monotonic() - start_s)}")

    def _tokenizer(self, name: str, charge: Charge) -> dict[str, Any]:
        if self.recipe.data.shards:
            tokenizer, facts = adopt_shards(self.recipe)
            tokenizer.save(self.run.tokenizer_folder)
            texts = provenance(self.recipe.data.shards)
            return {"vocab_size": tokenizer.vocab_size, **asdict(facts), "texts": texts}
        vocab_size = self.recipe.tokenizer.vocab_size or load_preset(self.recipe.model).vocab_size
        with charge.timed("vocabulary"):
            tokenizer = train_tokenizer(self.recipe, vocab_size)
        tokenizer.save(self.run.tokenizer_folder)
        with charge.timed("corpus"):
            corpus = tokenise(self.recipe, tokenizer)
        corpus.save(self.run.corpus_folder)
        charge.tokens += corpus.facts.train_tokens + corpus.facts.validation_tokens
        return {"vocab_size": tokenizer.vocab_size, **asdict(corpus.facts)}

    def _pretrain(self, name: str, charge: Charge) -> dict[str, Any]:
        return self._together(name, charge, pretrain)

    def _together(
        self, name: str, charge: Charge, learn: Callable[[Stage, TokenisedCorpus], dict[str, Any]]
    ) -> dict[str, Any]:
        """Learn from the corpus, with the other ranks where there are any."""
        if self.ranks is not None:
            self.ranks.tell(name)
        figures = learn(self._stage(name, charge), load_corpus(self.recipe, self.run.corpus_folder))
        if self.ranks is not None:
            charge.devices = self.ranks.place.world
            nothing = torch.zeros((), dtype=torch.float64, device=self.recipe.device)
            charge.joules_elsewhere = float(self.ranks.total(nothing))
        return figures

    def _sft(self, name: str, charge: Charge) -> dict[str, Any]:
        settings = self.recipe.settings_of(name, SftSettings)
        if settings.data is not None:
            return tune(self._stage(name, charge))
        problems = settings.development_problems
        return sft(self._stage(name, charge), self._tasks(name), self._watch(name, problems))

    def _grpo(self, name: str, charge: Charge) -> dict[str, Any]:
        problems = self.recipe.settings_of(name, GrpoSettings).development_problems
        return grpo(self._stage(name, charge), self._tasks(name), self._watch(name, problems))

    def _traces(self, name: str, charge: Charge) -> dict[str, Any]:
        return collect(self._stage(name, charge), self._tasks(name))

    def _distill(self, name: str, charge: Charge) -> dict[str, Any]:
        problems = self.recipe.settings_of(name, DistillSettings).development_problems
        return distill(self._stage(name, charge), self._tasks(name), self._watch(name, problems))

    def _dpo(self, name: str, charge: Charge) -> dict[str, Any]:
        return dpo(self._stage(name, charge))

    def _extend(self, name: str, charge: Charge) -> dict[str, Any]:
        folder = self.run.corpus_folder
        if not self.recipe.data.shards and not folder.is_dir():  # the run starts from a model folder
            tokenise(self.recipe, self._load_tokenizer()).save(folder)
        return self._together(name, charge, extend)

    def _eval(self, name: str, charge: Charge) -> dict[str, Any]:
        found = evaluate_run(self.run, self._load_tokenizer(), self.environments, charge, self.workers)
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in found.samples]
        write_atomic(self.run.samples_path, "".join(lines))
        for task, films in found.films.items():
            for model, film in films.items():
                write_atomic(self.run.films_folder / f"{task}-{model}.webp", film)
        self.run.update("accuracy", found.accuracy)
        with charge.timed("contamination"):
            self.run.update("contamination", asdict(self._overlap()))
        if found.mtp_acceptance is not None:
            self.run.update("mtp", {"acceptance": found.mtp_acceptance})
        return {"problems": self.recipe.eval.problems}

    def _overlap(self) -> Contamination:
        """Look for the problems that the models are judged by in what they were trained on."""
        recipe, (held_out, trained) = self.recipe, (list[str](), list[str]())
        for environment in self.environments:
            levels, count = recipe.levels.get(environment.name), recipe.eval.problems
            held_out += [one.prompt for one in distinct_problems(environment, count, recipe.seed, levels, "test")]
            taught = environment.problems("train", TRACE_SEED + recipe.seed, levels)
            trained += [one.prompt for one in itertools.islice(taught, recipe.sft.traces_per_environment)]
        corpus = recipe_documents(recipe) if "pretrain" in stages_of(recipe) else ()
        return contamination(held_out, itertools.chain(corpus, trained))

    def _stage(self, name: str, charge: Charge) -> Stage:
        recipe, ranks = self.recipe, self.ranks
        gpu = torch.cuda.get_device_name() if recipe.device == "cuda" else None
        threads = recipe.threads or available_threads() if ranks is None else torch.get_num_threads()
        count = (threads if gpu is None else 1) * (1 if ranks is None else ranks.place.world)
        spending = Spending(self.ledger, charge, peak_flops(count, recipe.dtype, recipe.cost.hardware, gpu))
        return Stage(self.run, name, self._load_tokenizer(), self.log, charge, self.workers, ranks, spending)

    def _load_tokenizer(self) -> Tokenizer:
        return _tokenizer_of(self.run)

    def _tasks(self, name: str) -> list[Environment]:
        return [load_environment(task) for task in self.recipe.environments_of(name)]

    def _watch(self, name: str, problems: int) -> Callable[[Transformer], dict[str, float]]:
        recipe, tokenizer, tasks = self.recipe, self._load_tokenizer(), self._tasks(name)
        own = recipe.settings_of(name, SettingsGroup)
        limit = getattr(own, "max_new_tokens", recipe.grpo.max_new_tokens)

        looks = [row["look"] for row in RunLog(self.run.watched_path).read(name) if isinstance(row.get("look"), int)]
        look = itertools.count(max(looks, default=0) + 1)

        def accuracy(model: Transformer) -> dict[str, float]:
            number = next(look)

            def keep(sample: dict[str, Any]) -> None:
                row = json.dumps(sample | {"stage": name, "look": number}, ensure_ascii=False)
                append_line(self.run.watched_path, row)

            return development_accuracy(
                model,
                tokenizer,
                tasks,
                problems=problems,
                levels=recipe.levels,
                seed=recipe.seed,
                max_new_tokens=limit,
                context_tokens=limit + recipe.data.sequence_tokens,
                workers=self.workers,
                effort=recipe.efforts[-1] if recipe.efforts else None,
                on_attempt=keep,
            )

        return accuracy

    def _summarise(self) -> None:
        """Bring the summary's totals, the card and the report up to date."""
        config = load_preset(self.recipe.model)
        counted = parameters(config)
        self.run.update("totals", self.ledger.totals()["totals"])
        self.run.update("machine", machine(self.recipe.device))
        shape = {"name": self.recipe.model, "parameters": counted.total, "active_parameters": counted.active}
        self.run.update("model", {**shape, **_described(self.run, config)})
        write_atomic(self.run.card_path, model_card(self.run.summary, self.recipe.model_dump(mode="json")))
        write_report(self.run.folder)


def _described(run: Run, config: ModelConfig) -> dict[str, Any]:
    """Return what the card says of a model beside its size."""
    experts = f", {config.n_routed_experts} experts, {config.num_experts_per_tok} of them for a token"
    described: dict[str, Any] = {
        "architecture": f"{config.model_type}, {config.num_hidden_layers} layers of width {config.hidden_size}"
        + (experts if config.n_routed_experts else ""),
        "context_tokens": config.max_position_embeddings,
        "made": time.strftime("%Y-%m-%d"),
    }
    if (folder := run.latest()) is not None:
        described["context_tokens"] = ModelConfig.from_file(folder / "config.json").max_position_embeddings
        digest = hashlib.sha256()
        for path in sorted(folder.glob("model*.safetensors")):
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        described["weights_sha256"] = digest.hexdigest()
    return described


def machine(device: str) -> dict[str, Any]:
    """Return what a run was made on."""
    return {
        "processor": _processor(),
        "cores": available_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "leanseek": leanseek.__version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit of a source checkout, or None where leanseek was installed otherwise."""
    here = str(leanseek.__path__[0])
    try:
        command = ["git", "-C", here, "rev-parse", "--short", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None


def _check(recipe: Recipe) -> None:
    """Refuse what does not fit together, before anything is made."""
    check_trackers(recipe.track)
    tasks = dict.fromkeys([*recipe.environments, *(t for name in recipe.line for t in recipe.environments_of(name))])
    for task in tasks:
        load_environment(task)
    for name, kind in recipe.line.items():
        if kind == "sft" and (own := recipe.settings_of(name, SftSettings).data) is not None:
            read_dialogues(own)
        if kind == "dpo":
            given = recipe.settings_of(name, DpoSettings).data
            if given is None:
                raise ConfigError(f"{name} has nothing to learn from: give a .jsonl file of pairs as dpo.data")
            read_preferences(given)
        if kind == "extend" and not (recipe.data.sources or recipe.data.shards or recipe.environments):
            raise ConfigError(f"{name} has nothing to read: give your own text as data.sources, or data.shards")
        if kind == "grpo":
            settings = recipe.settings_of(name, GrpoSettings)
            check_rubric(settings.rubric)
            if settings.language is not None:
                scripts_of(settings.language)
    _check_vocabulary(recipe)


def _check_sources(recipe: Recipe) -> None:
    """Refuse text that is not there, or cannot be read at its beginning; a run with tokens needs it no longer."""
    if recipe.data.shards or not {"tokenizer", "extend"} & set(recipe.line.values()):
        return
    files = [source for source in recipe.data.sources if not source.startswith(DATASET)]
    for path in source_files(files):
        if next(read_file(path), None) is None and len(recipe.data.sources) == 1:
            raise DataError(f"{path}: there is no text in it (data.sources)")


def _check_vocabulary(recipe: Recipe) -> None:
    config = load_preset(recipe.model)
    for folder in recipe.data.shards:
        index = read_index(folder)
        has = index["vocab_size"]
        start = recipe.grpo.start
        if start is not None and index["tokenizer"] != Tokenizer.load(start).digest():
            raise ConfigError(
                f"{folder} was made with another tokenizer than that of {start}: make the shards with it "
                f"(leanseek data --tokenizer {start})"
            )
        if has > config.vocab_size:
            raise ConfigError(
                f"{folder} has tokens of a vocabulary of {has}, but the model {recipe.model} has rows for "
                f"{config.vocab_size}: make the shards with a smaller one, or choose another model"
            )
    wanted = recipe.tokenizer.vocab_size
    if wanted is not None and wanted > config.vocab_size:
        raise ConfigError(
            f"tokenizer.vocab_size = {wanted}, but the model {recipe.model} has rows for {config.vocab_size} tokens: "
            "leave it out to use them all"
        )
    if recipe.data.sequence_tokens > config.max_position_embeddings:
        raise ConfigError(
            f"data.sequence_tokens = {recipe.data.sequence_tokens} is more than the model's context of "
            f"{config.max_position_embeddings} tokens"
        )
