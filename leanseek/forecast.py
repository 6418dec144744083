"""Forecast: what each stage of a recipe would take on this machine, said before the run. No torch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leanseek.cost.rates import Rates
from leanseek.data.corpus import documents
from leanseek.data.sources import read_documents
from leanseek.envs.environment import Environment, load_environment
from leanseek.errors import DataError, UsageError
from leanseek.messages import Message
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.count import causal_pairs, decode_flops_per_token, forward_flops, training_flops
from leanseek.sections.distillation import DistillSettings, TracesSettings
from leanseek.sections.grpo import GrpoSettings
from leanseek.sections.training import TrainSettings
from leanseek.sections.tuning import SftSettings
from leanseek.settings import Recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

# Documents that a vocabulary is learnt from to say how long texts will be; problems of each task that are looked at.
DOCUMENTS, PROBLEMS = 1000, 60
# Groups of GRPO whose replies differ in reward teach something; how many will is not known: half is taken.
INFORMATIVE = 0.5
# Replies that are decoded side by side in evaluations.
BATCH = 512


@dataclass(frozen=True)
class StageForecast:
    """What one stage would take.

    Args:
        stage: its name, as in the ledger.
        tokens: read or sampled.
        seconds: of work.
        joules: by the machine's power model.
        usd: at the recipe's price for an hour.
    """

    stage: str
    tokens: int
    seconds: float
    joules: float
    usd: float


@dataclass(frozen=True)
class Texts:
    """How long a recipe's texts are, in tokens.

    Args:
        document: of the corpus, on the average.
        prompt, reply: of a worked problem, on the average.
        longest: reply.
        hasty: a reply of which SFT sees only the beginning, on the average.
    """

    document: float
    prompt: float
    reply: float
    longest: int
    hasty: float


def forecast(recipe: Recipe, rates: Rates) -> list[StageForecast]:
    """Say what the stages of a recipe would take.

    Args:
        recipe: of a run from nothing, on a processor.
        rates: of this machine.
    Raises:
        UsageError: it starts from another model, or on a GPU.
        DataError: its own sources hold no text.
    """
    if recipe.grpo.start is not None or recipe.device != "cpu":
        raise UsageError(
            f"recipe {recipe.name}: only runs from nothing on a processor are foretold stage by stage; plan others "
            "with --on, and --tokens or --rl"
        )
    return _Forecast(recipe, rates, lengths(recipe)).stages()


def as_summary(stages: Iterable[StageForecast]) -> dict[str, Any]:
    """Return a forecast as a run's summary keeps it: stage -> figures."""
    return {one.stage: asdict(one) for one in stages}


def lengths(recipe: Recipe) -> Texts:
    """Measure how long a recipe's texts will be, with a vocabulary learnt from its first documents."""
    environments = [load_environment(name) for name in recipe.environments]
    source = (
        read_documents(recipe.data.sources)
        if recipe.data.sources
        else documents(recipe.seed, recipe.data.documents, environments, recipe.levels)
    )
    texts = list(itertools.islice(source, DOCUMENTS))
    if not texts:
        raise DataError(f"data.sources = {', '.join(recipe.data.sources)}: there is no text in it")
    tokenizer = Tokenizer.train(texts, recipe.tokenizer.vocab_size or load_preset(recipe.model).vocab_size)
    document = sum(len(ids) + len(tokenizer.beginning) for ids in tokenizer.encode_batch(texts)) / len(texts)
    prompts, replies, hasty = [], [], []
    for prompt, reply, thinking in _worked(ChatFormat(tokenizer), environments, recipe):
        prompts.append(prompt)
        replies.append(reply)
        hasty.append(reply - thinking)
    mean = sum(replies) / len(replies)
    return Texts(document, sum(prompts) / len(prompts), mean, max(replies), sum(hasty) / len(hasty))


def _worked(chat: ChatFormat, environments: Sequence[Environment], recipe: Recipe) -> Iterable[tuple[int, int, float]]:
    """Yield the tokens of problems, of their worked solutions, and of what haste leaves out of those."""
    rng = random.Random(f"forecast/{recipe.seed}")
    for environment in environments:
        problems = environment.problems("train", recipe.seed, recipe.levels.get(environment.name))
        for problem in itertools.islice(problems, PROBLEMS):
            solution = environment.solution(problem, rng)
            ids, mask = chat.example([Message("user", problem.prompt), solution])
            lines = (solution.reasoning_content or "").split("\n")
            # Line n is the last with the chance hasty (1 - hasty)^(n - 1); none is cut after the last one.
            chance = recipe.sft.hasty
            kept = sum((1 - chance) ** n for n in range(len(lines)))
            share = len("\n".join(lines)) / max(len("\n".join(lines)) + len(solution.content), 1)
            yield len(ids) - sum(mask), sum(mask), sum(mask) * share * (1 - kept / len(lines))


def prefill_seconds(config: ModelConfig, rates: Rates, prompts: int, prompt: int) -> float:
    """Return the seconds of reading so many prompts of so many tokens."""
    flops = forward_flops(config, tokens=prompt, pairs=causal_pairs([prompt]), head_tokens=1)
    return prompts * flops / rates.prefill_flops_per_s


def decode_seconds(config: ModelConfig, rates: Rates, replies: int, prompt: int, reply: float, steps: float) -> float:
    """Return the seconds of writing replies.

    Args:
        config: the model's.
        rates: of this machine.
        replies: how many.
        prompt: tokens before each.
        reply: tokens of each, on the average.
        steps: of decoding; each serves all that are not done.
    """
    flops = replies * reply * decode_flops_per_token(config, round(prompt + reply / 2))
    return steps * config.num_hidden_layers * rates.layer_decode_s + flops / rates.decode_flops_per_s


class _Forecast:
    """A recipe's work in tokens and FLOPs, and the seconds of that."""

    def __init__(self, recipe: Recipe, rates: Rates, texts: Texts) -> None:
        self.recipe, self.rates, self.texts = recipe, rates, texts
        self.config: ModelConfig = load_preset(recipe.model)

    def stages(self) -> list[StageForecast]:
        """Return all stages, in order."""
        recipe, texts, tasks = self.recipe, self.texts, len(self.recipe.environments)
        count = recipe.data.documents
        corpus = int(count * texts.document)
        found = [self._stage("tokenizer", corpus, count / self.rates.documents_per_s)]
        length = recipe.data.sequence_tokens
        steps, seconds = self._training(recipe.pretrain, recipe.pretrain.batch_sequences, length)
        held_back = min(corpus * recipe.data.validation_fraction, 1e9)
        looks = 1 + steps // recipe.pretrain.validate_every
        flops = forward_flops(self.config, tokens=int(held_back), pairs=int(held_back * (length + 1) / 2))
        seconds += looks * flops / self.rates.train_flops_per_s
        found.append(self._stage("pretrain", steps * recipe.pretrain.batch_sequences * length, seconds))

        makers = {"sft": self._sft, "grpo": self._grpo, "traces": self._traces, "distill": self._distill}
        for name, kind in recipe.line.items():
            if kind in makers:
                found.append(makers[kind](name, len(recipe.environments_of(name))))
        found.append(self._evaluation(tasks))
        return found

    def _sft(self, name: str, tasks: int) -> StageForecast:
        texts, settings = self.texts, self.recipe.settings_of(name, SftSettings)
        reply = texts.hasty if settings.traces is None else texts.reply
        trace = round(texts.prompt + reply)
        steps, seconds = self._training(settings, settings.batch_sequences, trace)
        seconds += self._looks(settings, steps, settings.development_problems * tasks, reply)
        return self._stage(name, steps * settings.batch_sequences * trace, seconds)

    def _grpo(self, name: str, tasks: int) -> StageForecast:
        texts, settings = self.texts, self.recipe.settings_of(name, GrpoSettings)
        prompts, each = settings.prompts_per_step, settings.samples_per_prompt
        sampled, sample_s = self._sampling(prompts, each, texts.reply)
        learnt = INFORMATIVE * prompts * each
        group = round(texts.prompt / each + texts.reply)
        steps, train_s = self._training(settings, round(learnt), group, settings.epochs * settings.minibatches)
        looks_s = self._looks(settings, steps, settings.development_problems * tasks, texts.reply)
        tokens = steps * (sampled + int(learnt * group * settings.epochs))
        return self._stage(name, tokens, steps * sample_s + train_s + looks_s)

    def _traces(self, name: str, tasks: int) -> StageForecast:
        settings = self.recipe.settings_of(name, TracesSettings)
        return self._stage(name, *self._sampling(settings.problems * tasks, settings.samples, self.texts.reply))

    def _distill(self, name: str, tasks: int) -> StageForecast:
        texts, settings = self.texts, self.recipe.settings_of(name, DistillSettings)
        own = settings.method == "on_policy"
        rows = settings.prompts_per_step * settings.samples_per_prompt if own else settings.batch_sequences
        length = round(texts.prompt + texts.reply)
        steps, train_s = self._training(settings.model_copy(update={"mtp_weight": 0.0}), rows, length)
        sampled, sample_s = self._sampling(settings.prompts_per_step, settings.samples_per_prompt, texts.reply)
        # The teacher, taken to be of the student's shape, goes forward beside the student's forward and backward.
        taught_s = train_s * 4 / 3
        looks_s = self._looks(settings, steps, settings.development_problems * tasks, texts.reply)
        tokens = steps * (rows * length + (sampled if own else 0))
        return self._stage(name, tokens, taught_s + looks_s + (steps * sample_s if own else 0))

    def _looks(self, settings: TrainSettings, steps: int, problems: int, reply: float) -> float:
        """Return the seconds of the looks that a stage takes at how far it is."""
        return max(1, -(-steps // settings.validate_every)) * self._sampling(problems, 1, reply)[1]

    def _evaluation(self, tasks: int) -> StageForecast:
        settings, tokens, seconds = self.recipe.eval, 0, 0.0
        # A pretrained model does not know yet where a reply ends; one after SFT does, and breaks off as it was taught.
        models = [(n, k) for n, k in self.recipe.line.items() if k not in ("tokenizer", "traces", "eval")]
        said = {"pretrain": float(settings.max_new_tokens), "sft": self.texts.hasty}
        for reply in (said.get(kind, self.texts.reply) for _, kind in models):
            for samples in (1, settings.samples):
                read, took = self._sampling(settings.problems, samples, min(reply, settings.max_new_tokens))
                tokens, seconds = tokens + tasks * read, seconds + tasks * took
        return self._stage("eval", tokens, seconds)

    def _training(self, settings: TrainSettings, rows: int, length: int, updates: int = 1) -> tuple[int, float]:
        """Return a training stage's steps and seconds; where only minutes are given, as many as they hold."""
        pairs = causal_pairs([length])
        each = 0.0
        for with_mtp in (False, True):
            flops = training_flops(
                self.config,
                tokens=rows * length,
                pairs=rows * pairs,
                mtp=with_mtp and settings.mtp_weight > 0,
            )
            layers = self.config.num_hidden_layers
            if with_mtp and settings.mtp_weight > 0:
                layers += self.config.num_nextn_predict_layers
            share = 1 / settings.mtp_every if with_mtp else 1 - 1 / settings.mtp_every
            fixed_s = updates * layers * self.rates.layer_step_s
            each += share * (fixed_s + flops / self.rates.train_flops_per_s)
        if settings.steps is not None:
            return settings.steps, settings.steps * each
        budget_s = (settings.minutes or 1.0) * 60
        return max(1, int(budget_s / each)), budget_s

    def _sampling(self, prompts: int, each: int, reply: float) -> tuple[int, float]:
        """Return the tokens and seconds of some replies to each of some prompts."""
        config, texts = self.config, self.texts
        prompt = max(round(texts.prompt), 1)
        rounds = -(-prompts * each // BATCH)
        # The last reply of a round ends it; within a round the others' ends are filled by those that wait.
        longest = max(reply, texts.longest if rounds == 1 else reply)
        seconds = prefill_seconds(config, self.rates, prompts, prompt)
        seconds += decode_seconds(config, self.rates, prompts * each, prompt, reply, rounds * longest)
        return round(prompts * (prompt + each * reply)), seconds

    def _stage(self, name: str, tokens: int, seconds: float) -> StageForecast:
        usd = seconds / 3600 * self.recipe.cost.usd_per_hour
        return StageForecast(name, tokens, seconds, seconds * self.rates.watts, usd)
