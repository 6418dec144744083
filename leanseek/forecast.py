"""Forecast: what each stage of a recipe would take on this machine, said before the run. No torch."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leanseek.cost.rates import Rates
from leanseek.data.corpus import documents
from leanseek.data.sources import read_documents
from leanseek.drawing import Drawing, drawing_seconds
from leanseek.envs.environment import Environment, load_environment
from leanseek.errors import DataError, UsageError
from leanseek.messages import Message
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.count import causal_pairs, forward_flops, mtp_flops, parameters, training_flops
from leanseek.sections.distillation import DistillSettings, TracesSettings
from leanseek.sections.grpo import GrpoSettings
from leanseek.sections.training import ExtendSettings, TrainSettings
from leanseek.sections.tuning import SftSettings
from leanseek.settings import Recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

# Documents that a vocabulary is learnt from to say how long texts will be; problems of each task that are looked at.
DOCUMENTS, PROBLEMS = 1000, 60
# GRPO is taken to begin with one reply in two wrong, and to have half as many wrong after so many steps: the median of
# seven runs of 60 steps (robot's three seeds, r1-laptop's first stage, three specialists) was 4.05, from 0.4 to 9.6.
WRONG, HALVED_STEPS = 0.5, 4.0
# Replies that evaluations draw side by side (`evals.evaluation`); problems that a stage of traces asks (`rl.collect`).
BATCH, TOGETHER = 512, 128


@dataclass(frozen=True)
class StageForecast:
    """What one stage would take.

    Args:
        stage: its name, as in the ledger.
        tokens: read or sampled.
        seconds: of work.
        joules: by the machine's power model.
        usd: at the recipe's price for an hour.
        parts: what the seconds go to.
    """

    stage: str
    tokens: int
    seconds: float
    joules: float
    usd: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Texts:
    """How long a recipe's texts are, in tokens.

    Args:
        document: of the corpus, on the average.
        prompt: of a problem, on the average.
        replies: of worked problems, one by one.
        hasty: the same, as far as SFT sees them.
    """

    document: float
    prompt: float
    replies: tuple[float, ...]
    hasty: tuple[float, ...]


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


def informative(steps: int, each: int) -> float:
    """Return the share of GRPO's groups that teach something in a run, because their replies differ in reward.

    Where few replies are wrong, as few groups have one, and only those teach: each step then spares a share of the
    wrong ones that is itself as small as what is left. So they fall as one over the steps.

    Args:
        steps: of the run.
        each: replies of a group.
    """
    wrong = [WRONG / (1 + step / HALVED_STEPS) for step in range(steps)]
    return _mean([1 - one**each - (1 - one) ** each for one in wrong])


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
    return Texts(document, _mean(prompts), tuple(replies), tuple(hasty))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


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


class _Forecast:
    """A recipe's work in tokens and FLOPs, and the seconds of that."""

    def __init__(self, recipe: Recipe, rates: Rates, texts: Texts) -> None:
        self.recipe, self.rates, self.texts = recipe, rates, texts
        self.config: ModelConfig = load_preset(recipe.model)

    def stages(self) -> list[StageForecast]:
        """Return all stages, in order."""
        found = [self._tokenizer(), self._pretrain()]
        makers = {"sft": self._sft, "grpo": self._grpo, "traces": self._traces, "distill": self._distill}
        makers["extend"] = self._extend
        for name, kind in self.recipe.line.items():
            if kind in makers:
                found.append(makers[kind](name, len(self.recipe.environments_of(name))))
        return [*found, self._evaluation(len(self.recipe.environments))]

    def _tokenizer(self) -> StageForecast:
        recipe, rates, count = self.recipe, self.rates, self.recipe.data.documents
        longer = self.texts.document / rates.document_tokens
        learnt = min(count, recipe.tokenizer.training_documents)
        parts = {
            "vocabulary": learnt * longer / rates.learn_documents_per_s,
            "corpus": count * longer / rates.encode_documents_per_s,
        }
        return self._stage("tokenizer", int(count * self.texts.document), parts)

    def _pretrain(self) -> StageForecast:
        recipe, settings, length = self.recipe, self.recipe.pretrain, self.recipe.data.sequence_tokens
        steps, learn_s = self._training(settings, settings.batch_sequences, length)
        held_back = min(recipe.data.documents * self.texts.document * recipe.data.validation_fraction, 1e9)
        looks = 1 + steps // settings.validate_every
        parts = {"learning": learn_s, "looks": looks * self._forward_s(held_back / length, length)}
        return self._stage("pretrain", steps * settings.batch_sequences * length, parts)

    def _sft(self, name: str, tasks: int) -> StageForecast:
        texts, settings = self.texts, self.recipe.settings_of(name, SftSettings)
        replies = texts.hasty if settings.traces is None else texts.replies
        trace = round(texts.prompt + _mean(replies))
        steps, learn_s = self._training(settings, settings.batch_sequences, trace)
        problems = settings.traces_per_environment * tasks if settings.traces is None else 0
        parts = {
            "problems": problems * self.rates.problem_s,
            "learning": learn_s,
            "looks": self._looks(settings, steps, settings.development_problems, tasks, replies),
        }
        return self._stage(name, steps * settings.batch_sequences * trace, parts)

    def _grpo(self, name: str, tasks: int) -> StageForecast:
        texts, settings = self.texts, self.recipe.settings_of(name, GrpoSettings)
        prompts, each = settings.prompts_per_step, settings.samples_per_prompt
        work = self._work(prompts, each, texts.replies, prompts * each, settings.replay_routing)
        learnt, group = float(work.samples), round(texts.prompt / each + _mean(texts.replies))
        steps, learn_s = self._training(settings, work.samples, group, settings.epochs * settings.minibatches)
        # Where only minutes are given, fewer groups are more steps, of which still fewer teach: that settles soon.
        for _ in range(1 if settings.steps is not None else 4):
            learnt = informative(steps, each) * work.samples
            steps, learn_s = self._training(settings, round(learnt), group, settings.epochs * settings.minibatches)
        looks_s = self._looks(settings, steps, settings.development_problems, tasks, texts.replies)
        tokens = steps * (_tokens(work) + int(learnt * group * settings.epochs))
        drawn_s = self._replies_s(work, steps) + self._renewed_s(steps)
        parts = {"batches": drawn_s, "learning": learn_s, "looks": looks_s}
        return self._stage(name, tokens, parts)

    def _traces(self, name: str, tasks: int) -> StageForecast:
        settings = self.recipe.settings_of(name, TracesSettings)
        work = self._work(TOGETHER, settings.samples, self.texts.replies, TOGETHER * settings.samples)
        times = settings.problems * tasks / TOGETHER
        return self._stage(name, round(times * _tokens(work)), {"replies": self._replies_s(work, times)})

    def _distill(self, name: str, tasks: int) -> StageForecast:
        texts, settings = self.texts, self.recipe.settings_of(name, DistillSettings)
        own = settings.method == "on_policy"
        prompts, each = settings.prompts_per_step, settings.samples_per_prompt
        rows = prompts * each if own else settings.batch_sequences
        length = round(texts.prompt + _mean(texts.replies))
        steps, train_s = self._training(settings.model_copy(update={"mtp_weight": 0.0}), rows, length)
        work = self._work(prompts, each, texts.replies, prompts * each)
        parts = {"batches": self._replies_s(work, steps) + self._renewed_s(steps)} if own else {}
        # The teacher, taken to be of the student's shape, goes forward beside the student's forward and backward.
        parts["learning"] = train_s * 4 / 3
        parts["looks"] = self._looks(settings, steps, settings.development_problems, tasks, texts.replies)
        return self._stage(name, steps * (rows * length + (_tokens(work) if own else 0)), parts)

    def _extend(self, name: str, tasks: int) -> StageForecast:
        settings = self.recipe.settings_of(name, ExtendSettings)
        steps, seconds = self._training(settings, settings.batch_sequences, settings.sequence_tokens)
        tokens = steps * settings.batch_sequences * settings.sequence_tokens
        return self._stage(name, tokens, {"learning": seconds})

    def _looks(self, settings: TrainSettings, steps: int, problems: int, tasks: int, replies: Sequence[float]) -> float:
        """Return the seconds of the looks that a stage takes at how far it is."""
        looks = max(1, -(-steps // settings.validate_every))
        return self._replies_s(self._work(problems, 1, replies, problems), looks * tasks) + self._renewed_s(looks)

    def _evaluation(self, tasks: int) -> StageForecast:
        recipe, settings, texts = self.recipe, self.recipe.eval, self.texts
        parts: dict[str, float] = defaultdict(float)
        tokens = 0
        # A pretrained model does not know yet where a reply ends; one after SFT does, and breaks off as it was taught.
        said = {"pretrain": (float(settings.max_new_tokens),), "sft": texts.hasty}
        models = [k for k in recipe.line.values() if k not in ("tokenizer", "traces", "eval")]
        parts["replies"] = self._renewed_s(len(models))
        for kind in models:
            replies = [min(reply, settings.max_new_tokens) for reply in said.get(kind, texts.replies)]
            for samples in (1, settings.samples):
                work = self._work(settings.problems, samples, replies, BATCH)
                tokens += tasks * _tokens(work)
                parts["replies"] += self._replies_s(work, tasks)
        if self.config.num_nextn_predict_layers:
            reply = _mean(said.get(models[-1], texts.replies))
            parts["drafts"] = self._forward_s(
                tasks * settings.problems, round(texts.prompt + reply), drafts=round(reply)
            )
        problems = recipe.sft.traces_per_environment * tasks
        parts["contamination"] = problems * self.rates.problem_s + (
            recipe.data.documents * texts.document / self.rates.document_tokens / self.rates.search_documents_per_s
        )
        return self._stage("eval", tokens, parts)

    def _training(self, settings: TrainSettings, rows: int, length: int, updates: int = 1) -> tuple[int, float]:
        """Return a training stage's steps and seconds; where only minutes are given, as many as they hold."""
        config, rates, pairs = self.config, self.rates, rows * causal_pairs([length])
        flops, more = (training_flops(config, tokens=rows * length, pairs=pairs, mtp=mtp) for mtp in (False, True))
        each = updates * config.num_hidden_layers * rates.layer_step_s + flops / rates.train_flops_per_s
        if settings.mtp_weight > 0 and config.num_nextn_predict_layers:
            each += (updates * rates.mtp_step_s + (more - flops) / rates.mtp_flops_per_s) / settings.mtp_every
        if settings.steps is not None:
            return settings.steps, settings.steps * each
        budget_s = (settings.minutes or 1.0) * 60
        return max(1, int(budget_s / each)), budget_s

    def _forward_s(self, texts: float, length: int, *, drafts: int | None = None) -> float:
        """Return the seconds of reading texts without learning, by one thread.

        Args:
            texts: how many.
            length: tokens of each.
            drafts: whose logits the MTP layer makes, of each text; None: the model makes those of every token.
        """
        pairs = causal_pairs([length])
        flops = forward_flops(self.config, tokens=length, pairs=pairs, head_tokens=None if drafts is None else 0)
        if drafts is not None:
            flops += mtp_flops(self.config, tokens=length, pairs=pairs, head_tokens=drafts)
        return texts * flops / self.rates.forward_flops_per_s

    def _work(self, prompts: int, each: int, replies: Sequence[float], rows: int, kept: bool = False) -> Drawing:
        return Drawing(prompts, each, max(round(self.texts.prompt), 1), replies, rows, kept)

    def _replies_s(self, work: Drawing, times: float = 1) -> float:
        """Return the seconds of replies, of their problems and of checking them."""
        checked_s = self.rates.reply_s + _mean(work.replies) * self.rates.reply_token_s
        around_s = work.prompts * self.rates.problem_s + work.samples * checked_s
        return times * (drawing_seconds(self.config, self.rates, work) + around_s)

    def _renewed_s(self, times: int) -> float:
        """Return the seconds of taking up weights that have changed."""
        return times * parameters(self.config).total / self.rates.renew_parameters_per_s

    def _stage(self, name: str, tokens: int, parts: Mapping[str, float]) -> StageForecast:
        seconds = sum(parts.values())
        usd = seconds / 3600 * self.recipe.cost.usd_per_hour
        return StageForecast(name, tokens, seconds, seconds * self.rates.watts, usd, dict(parts))


def _tokens(work: Drawing) -> int:
    return round(work.prompts * (work.prompt + work.each * _mean(work.replies)))
