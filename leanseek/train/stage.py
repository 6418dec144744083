"""Stage: one training stage of a run at work: where its weights come from, where its steps and checkpoints go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leanseek.checkpoint.background import Background
from leanseek.checkpoint.convert import read_config
from leanseek.checkpoint.directory import copy_of, empty_model, load_model
from leanseek.checkpoint.packed import form_of, load_packed
from leanseek.checkpoint.resume import STAGING, check_checkpoint, copy_of_state, load_state, save_checkpoint, save_part
from leanseek.checkpoint.share import Share
from leanseek.data.conversations import Conversations
from leanseek.data.traces import Example
from leanseek.errors import CheckpointError, ConfigError, DataError, RunError
from leanseek.log import RunLog, progress, say
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer
from leanseek.run import Run
from leanseek.sections.training import OptimiserSettings, TrainSettings
from leanseek.sections.tuning import SftSettings
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.optimisers import Optimiser
from leanseek.train.parallel import ParallelTrainer
from leanseek.train.pipeline import PipelineTrainer
from leanseek.train.precision import fp8
from leanseek.train.ranks import Ranks
from leanseek.train.trainer import Batches, Hooks, Meter, Objective, Trainer

# Of a config.json, what says in which form weights were written.
NO_SHAPE = ("dtype", "torch_dtype", "quantization_config", "transformers_version")


@dataclass(frozen=True)
class Stage:
    """A training stage of a run.

    Args:
        run: whose folder is written.
        name: one of its line's.
        tokenizer: saved with every checkpoint.
        log: step by step.
        meter: where the work is charged.
        workers: threads that share the work of a step.
        ranks: processes that train together, each with its own `Stage`; None: this one trains alone.
        note: what the person at the terminal is told beside the loss: what the run has cost so far.
    """

    run: Run
    name: str
    tokenizer: Tokenizer
    log: RunLog
    meter: Meter
    workers: int = 1
    ranks: Ranks | None = None
    note: Callable[[], str] | None = None

    @property
    def settings(self) -> TrainSettings:
        """The stage's own settings."""
        return self.run.recipe.settings_of(self.name, TrainSettings)

    def before(self) -> Path | None:
        """Return the model folder that the stage starts from; None: from fresh weights.

        Raises:
            RunError: the stage before has left no checkpoint.
        """
        recipe = self.run.recipe
        before = recipe.before(self.name)
        if before is None:
            return None if recipe.grpo.start is None else Path(recipe.grpo.start)
        folder = self.run.latest(before)
        if folder is None:
            raise RunError(f"{self.run.folder} has no checkpoint of {before}, which {self.name} starts from")
        return folder

    def newest(self) -> Path | None:
        """Return the stage's newest checkpoint that is whole; damaged ones after it are put aside, with a warning.

        Of several ranks the first one looks, and the others go by what it found.

        Raises:
            CheckpointError: all that the stage has are damaged.
        """
        if self.ranks is None:
            return self._newest_whole()
        if self.ranks.first:
            for left in self.run.checkpoint(self.name, 0).parent.glob(f".{self.name}-*{STAGING}"):
                shutil.rmtree(left)  # of ranks that were killed
        found = str(self._newest_whole() or "") if self.ranks.first else None
        said = self.ranks.tell(found)
        return Path(said) if said else None

    def _newest_whole(self) -> Path | None:
        found = self.run.checkpoints(self.name)
        damaged: list[tuple[Path, CheckpointError]] = []
        while found:
            try:
                check_checkpoint(found[-1])
                break
            except CheckpointError as error:
                damaged.append((found.pop(), error))
        if damaged and not found:
            raise CheckpointError(
                f"{damaged[0][1]}; there is no earlier one to go back to: start the run afresh with --fresh"
            )
        for path, error in damaged:
            aside = path.with_name(f"damaged-{path.name}")
            path.replace(aside)
            say(f"warning: {error}; going back to {found[-1].name}, the damaged one is kept as {aside.name}")
        return found[-1] if found else None

    def model(self) -> Transformer:
        """Return the weights to go on from: the stage's last checkpoint, those it starts from, or a fresh start.

        Of several ranks each has only its own filled, where that is whole layers or experts.

        Raises:
            RunError: the stage before has left no checkpoint.
        """
        recipe, place = self.run.recipe, None if self.ranks is None else self.ranks.place
        newest, before = self.newest(), self.before()
        if before is not None and (form := form_of(read_config(before))) is not None:
            return self._packed(before, form)
        folder = newest or before
        if newest is not None and before is None:
            self._check_shape(newest)
        if folder is not None and place is not None:
            return load_model(
                folder, dtype=recipe.dtype, device=recipe.device, wanted=partial(place.reads, self.config)
            )
        if folder is not None:
            return load_model(folder, dtype=recipe.dtype, device=recipe.device)
        config = self._fresh_config
        empty = empty_model(config, dtype=recipe.dtype).to(recipe.device)
        return initialise(empty, recipe.seed) if place is None else initialise(empty, recipe.seed, place.holds)

    @property
    def _fresh_config(self) -> ModelConfig:
        """The shape of a model that starts from fresh weights."""
        ends = {"bos_token_id": self.tokenizer.bos_id, "eos_token_id": self.tokenizer.eos_id}
        return load_preset(self.run.recipe.model).replace(**ends)

    def _check_shape(self, checkpoint: Path) -> None:
        """Refuse to go on with a checkpoint of another shape than the recipe's model has by now.

        Raises:
            CheckpointError: it is one.
        """
        wanted, found = self._fresh_config.to_dict(), ModelConfig.from_file(checkpoint / "config.json").to_dict()
        differ = [key for key, value in wanted.items() if key not in NO_SHAPE and found.get(key) != value]
        if differ:
            told = ", ".join(f"{key} {found.get(key)}, not {wanted[key]}" for key in differ[:3])
            raise CheckpointError(
                f"{checkpoint} is of another config than the model {self.run.recipe.model}: it has {told}; give that "
                "model back its config, or start the run afresh with --fresh"
            )

    def _packed(self, folder: Path, form: str) -> Transformer:
        """Return a model with packed weights, which low-rank updates will stand beside.

        Raises:
            ConfigError: the stage would write them.
        """
        settings = self.settings
        if not isinstance(settings, SftSettings) or settings.data is None or not settings.lora_rank:
            raise ConfigError(
                f"{folder} is packed as {form}, and packed weights are not written: learn by low-rank updates beside "
                "them (leanseek sft --train.lora_rank 8), or start from the plain folder"
            )
        if self.run.recipe.device != "cpu":
            raise ConfigError(f"{folder} is packed as {form}, which is for --device cpu; start from the plain folder")
        return load_packed(folder, form)

    def measured_before(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return what the model was like before the first step, measured once and written down at once."""
        known = self.run.summary.get(self.name, {}).get("before")
        if self.ranks is not None:  # they measure together, or not at all
            known = json.loads(self.ranks.tell(json.dumps(known)))
        if known is None:
            known = measure()
            if self.writes:
                self.run.update(self.name, {"before": known})
        return dict(known)

    def conversations(self, given: str) -> list[Example]:
        """Return what a stage of kind traces kept, or a file of replies has, as examples that fit the model's context.

        Args:
            given: the stage's name, or the file's path.
        Raises:
            DataError: the file is damaged, or nothing in it fits.
        """
        path = Path(given) if given.endswith(".jsonl") else self.run.traces_path(given)
        chat = ChatFormat(self.tokenizer)
        found = [chat.dialogue(messages, tools=tools) for messages, tools in Conversations(path).kept()]
        context = self.config.max_position_embeddings
        fitting = [example for example in found if len(example[0]) <= context]
        if not fitting:
            raise DataError(
                f"{path} has no reply to learn from"
                + (f" that fits the model's context of {context} tokens" if found else ": draw more, or more samples")
            )
        if len(fitting) < len(found):
            say(f"  {len(found) - len(fitting)} of {len(found)} replies are longer than the context and are left out")
        return fitting

    @property
    def config(self) -> ModelConfig:
        """The shape of the model that the stage starts from."""
        folder = self.before()
        return load_preset(self.run.recipe.model) if folder is None else ModelConfig.from_file(folder / "config.json")

    @property
    def writes(self) -> bool:
        """Whether this process tells and writes down what is done."""
        return self.ranks is None or self.ranks.first

    def trainer(
        self,
        model: Transformer,
        objective: Objective,
        settings: TrainSettings,
        optimiser: Callable[[Transformer, OptimiserSettings], Optimiser] = Optimiser,
    ) -> Trainer:
        """Return what trains a model; of several ranks, each has its part of it from now on."""
        if self.ranks is None:
            return Trainer(model, objective, settings, self.meter, self.workers, optimiser)
        kind = ParallelTrainer if self.ranks.place.spans is None else PipelineTrainer
        return kind(self.ranks, model, objective, settings, self.meter)

    def fit(
        self,
        model: Transformer,
        objective: Objective,
        batches: Batches,
        hooks: dict[str, Any],
        optimiser: Callable[[Transformer, OptimiserSettings], Optimiser] = Optimiser,
        *,
        steps: int | None = None,
    ) -> Trainer:
        """Train with this stage's settings, going on from its last checkpoint if it has one.

        Args:
            model: from `model`.
            objective: (model, batch) -> Loss.
            batches: step -> batch.
            hooks: `validate` and `enough` of `trainer.Hooks`, if wanted.
            optimiser: as `Trainer`.
            steps: how many; None: as the settings say.
        """
        settings = self.settings if steps is None else self.settings.model_copy(update={"steps": steps})
        trainer = self.trainer(model, objective, settings, optimiser)
        folder = self.run.latest(self.name)
        if folder is not None:
            trainer.load_state_dict(load_state(folder, lazily=self.ranks is not None))
        if self.writes:
            self.log.rewind(self.name, trainer.done)
        background = Background()

        def save(step: int, state: dict[str, Any]) -> None:
            weights = trainer.share() if isinstance(trainer, ParallelTrainer) else model
            if not settings.write_behind or (isinstance(weights, Transformer) and weights.packed_bits is not None):
                self._write(step, weights, state)
                return
            weights = copy_of(weights) if isinstance(weights, Transformer) else weights
            background.start(partial(self._write, step, weights, copy_of_state(state)))

        def log(step: int, metrics: dict[str, Any]) -> None:
            if self.writes:
                self.log.log(self.name, step, **metrics)

        precision = fp8(model) if self.settings.fp8 else nullcontext()
        with progress(trainer.steps, self.name, shown=self.writes) as bar, precision, background:
            trainer.fit(batches, Hooks(log, save, check=background.check, note=self.note, **hooks), bar)
        if self.writes and settings.keep_best and trainer.best is not None:
            self.run.update(self.name, {"best": trainer.best})
        return trainer

    def _write(self, step: int, weights: Transformer | Share, state: dict[str, Any]) -> None:
        """Write a checkpoint, and delete those that are not kept; of several ranks each writes its share of it."""
        folder, place = self.run.checkpoint(self.name, step), None if self.ranks is None else self.ranks.place
        if place is not None and place.rank > 0:
            if place.rank in place.writers and isinstance(weights, Share):
                save_part(folder, place.rank, state, weights)
            return
        save_checkpoint(folder, weights, self.tokenizer, state, () if place is None else place.writers[1:])
        best = state.get("best") if self.settings.keep_best else None
        self.run.prune(self.name, self.settings.keep_checkpoints, best and best["step"])
