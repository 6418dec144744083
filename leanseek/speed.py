"""Speed: measures how fast this machine trains and samples a small model, for forecasts of runs like it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch

from leanseek.calls import (
    BEGIN,
    CALLS,
    GROUP,
    KINDS,
    PROMPT,
    READ_MANY,
    ROWS,
    UNEVEN,
    Calls,
    Kind,
    Took,
    engine_rates,
    requests,
    undisturbed,
)
from leanseek.checkpoint.directory import empty_model
from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import this_cpu
from leanseek.cost.ledger import Charge
from leanseek.cost.rates import Rates, fixed_and_rate
from leanseek.data.batches import TokenStream
from leanseek.data.contamination import contamination
from leanseek.data.corpus import documents
from leanseek.data.tokens import TokenisedCorpus, tokenise, train_tokenizer
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import Output, SamplingParams
from leanseek.envs.environment import Environment, Problem, load_environment
from leanseek.evals.accuracy import distinct_problems
from leanseek.evals.attempts import attempt
from leanseek.kernels.threads import available_threads, share_out
from leanseek.messages import Message
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.count import causal_pairs, forward_flops, parameters
from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer
from leanseek.sections.training import TrainSettings
from leanseek.settings import Recipe, load_recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.objectives.next_token import NextToken, mean_loss
from leanseek.train.trainer import Trainer

RECIPE = "laptop"
DOCUMENTS = 1000
TEXT, FEW_TEXTS, MANY_TEXTS = 128, 8, 32
# Seconds after which nothing is timed once more, of which parts of the work have these shares.
PATIENCE_S = 5.0
# Replies that are checked for each task: problems, replies to each, and how often a solution is said over.
CHECKED = 64
MANY, FEW, LONGER = (CHECKED, 1, 1), (CHECKED // GROUP, GROUP, 1), (CHECKED // GROUP, GROUP, 3)
SHARES = {"corpus": 0.1, "training": 0.35, "engine": 0.6, "together": 0.8, "alone": 1.0}


class _Turns:
    """Measures in turn, so that what disturbs one disturbs the others: once each, and again while there is time.

    Args:
        repeats: of each, at most.
        clock: seconds.
        on_progress: called after each with the share of all that is done.
    """

    def __init__(self, repeats: int, clock: Callable[[], float], on_progress: Callable[[float], None]) -> None:
        self._repeats, self._clock, self._on_progress = repeats, clock, on_progress
        self._start, self._done = clock(), 0.0

    def through(self, part: str, measures: Sequence[Callable[[], object]]) -> None:
        """Call the measures, all of a part of the work."""
        share, before = SHARES[part], self._done
        for number in range(self._repeats * len(measures)):
            # The machine is busy, or slow: what there is must do.
            if number >= len(measures) and self._clock() - self._start > share * PATIENCE_S:
                break
            measures[number % len(measures)]()
            self._on_progress(before + (share - before) * (number + 1) / (self._repeats * len(measures)))
        self._done = share
        self._on_progress(share)


def measure_rates(
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Rates:
    """Train and sample a small model with made-up weights and time it; about eight seconds.

    Args:
        repeats: timings of each kind at most, of which the second shortest counts.
        clock: seconds.
        on_progress: called with the share that is done.
    """
    workers = share_out(None, "cpu")
    turns = _Turns(repeats, clock, on_progress)
    recipe = load_recipe(RECIPE, {"data.documents": DOCUMENTS})
    config = load_preset(recipe.model)
    environments = [load_environment(name) for name in recipe.environments]
    tokenizer, tokens, corpus = _corpus(recipe, config, environments, turns, clock)
    model = initialise(empty_model(config, dtype="float32"), 0)
    training = _training(model, tokens, workers, turns, clock)
    calls, checking = Calls(model.eval(), tokenizer, clock), _Checking(ChatFormat(tokenizer), environments, clock)
    turns.through("engine", [*(partial(calls.time, kind) for kind in KINDS), checking.time])
    pools = _Pools(model, tokenizer, tokens, workers, clock)
    turns.through("together", pools.measures)
    alone = Calls(model, tokenizer, clock)
    if workers > 1:
        torch.set_num_threads(available_threads())
        turns.through("alone", [partial(alone.time, kind) for kind in CALLS])
        share_out(None, "cpu")
    row, cores = this_cpu(), min(workers, usable_cores())
    engine = calls.took()
    read_gain, decode_gain = pools.gains(engine)
    return Rates(
        **training,
        engine=engine_rates(config, engine),
        alone=engine_rates(config, alone.took() or engine),
        workers=workers,
        read_gain=read_gain,
        decode_gain=decode_gain,
        renew_parameters_per_s=parameters(config).total / pools.renewed_s(),
        watts=row.watts * cores + row.idle_watts * (usable_cores() - cores),
        **checking.rates(),
        **corpus,
    )


def _corpus(
    recipe: Recipe, config: ModelConfig, environments: Sequence[Environment], turns: _Turns, clock: Callable[[], float]
) -> tuple[Tokenizer, torch.Tensor, dict[str, float]]:
    """Make a small corpus; return its tokenizer, its tokens and how fast it was made."""
    levels, count = recipe.levels, recipe.eval.problems
    held_out = [one.prompt for e in environments for one in distinct_problems(e, count, 0, levels.get(e.name))]
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    made: list[tuple[Tokenizer, TokenisedCorpus]] = []

    def measure() -> None:
        start = clock()
        tokenizer = train_tokenizer(recipe, config.vocab_size)
        learnt = clock()
        made.append((tokenizer, tokenise(recipe, tokenizer)))
        encoded = clock()
        contamination(held_out, documents(recipe.seed, DOCUMENTS, environments, levels))
        for found, seconds in zip(times, (learnt - start, encoded - learnt, clock() - encoded), strict=True):
            found.append(seconds)

    turns.through("corpus", [measure])
    tokenizer, corpus = made[-1]
    learn_s, encode_s, search_s = map(undisturbed, times)
    rates = {
        "learn_documents_per_s": DOCUMENTS / learn_s,
        "encode_documents_per_s": DOCUMENTS / encode_s,
        "search_documents_per_s": DOCUMENTS / search_s,
        "document_tokens": (corpus.facts.train_tokens + corpus.facts.validation_tokens) / DOCUMENTS,
    }
    return tokenizer, corpus.train, rates


def _training(
    model: Transformer, ids: torch.Tensor, workers: int, turns: _Turns, clock: Callable[[], float]
) -> dict[str, float]:
    """Return what optimiser steps take, from some over few texts and over many, with the MTP layer and without it.

    And how fast the model itself reads texts without learning.
    """
    meter = Charge("calibration")
    trainer = Trainer(model, NextToken(0.3, 1e-4), TrainSettings(steps=1000), meter, workers)
    streams = [TokenStream(ids, TEXT, rows, 0, bos_id=0) for rows in (FEW_TEXTS, MANY_TEXTS)]
    model.train()
    kinds = list(itertools.product((False, True), (0, 1)))
    flops: dict[tuple[bool, int], float] = {}
    times: dict[tuple[bool, int], list[float]] = {kind: [] for kind in kinds}
    looks: list[float] = []
    steps = itertools.count()

    def step(kind: tuple[bool, int]) -> float:
        mtp, which = kind
        batch, before = replace(streams[which].batch(next(steps)), mtp=mtp), meter.flops
        start = clock()
        trainer.step(batch)
        flops[kind] = meter.flops - before
        return clock() - start

    def look() -> None:
        start = clock()
        mean_loss(model, [streams[1].batch(0)])
        looks.append(clock() - start)

    for mtp in (False, True):  # the first step of each makes what the others reuse
        step((mtp, 0))
    turns.through("training", [*(lambda kind=kind: times[kind].append(step(kind)) for kind in kinds), look])
    took = {kind: undisturbed(found) for kind, found in times.items()}
    fixed_s, rate = fixed_and_rate(*((flops[False, which], took[False, which]) for which in (0, 1)))
    layers = model.config.num_hidden_layers
    found = {"layer_step_s": fixed_s / layers, "train_flops_per_s": rate}
    more = [
        (flops[True, n] - flops[False, n], max(took[True, n] - took[False, n], 0.01 * took[True, n])) for n in (0, 1)
    ]
    fixed_s, rate = fixed_and_rate(*more)
    read = forward_flops(model.config, tokens=MANY_TEXTS * TEXT, pairs=causal_pairs([TEXT] * MANY_TEXTS))
    return {**found, "mtp_step_s": fixed_s, "mtp_flops_per_s": rate, "forward_flops_per_s": read / undisturbed(looks)}


class _Pools:
    """Engines side by side: how much more they do than one, and what it takes them to take up changed weights."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, ids: torch.Tensor, workers: int, clock: Callable[[], float]
    ) -> None:
        self._model, self._workers, self._clock = model, workers, clock
        longest = PROMPT + max(UNEVEN.replies) + 1
        rows = workers * ROWS
        self._pool = EnginePool(model, tokenizer, workers=workers, max_batch=rows, max_context_tokens=longest)
        self._trainer = Trainer(model, NextToken(0.0, 0.0), TrainSettings(steps=1000), Charge("calibration"), workers)
        self._batch = TokenStream(ids, TEXT, FEW_TEXTS, 0, bos_id=0).batch(0)
        self._together: dict[Kind, list[float]] = {READ_MANY: [], UNEVEN: []}
        self._renewed: list[float] = []

    @property
    def measures(self) -> list[Callable[[], object]]:
        """What is to be measured."""
        alike = [partial(self._time, kind) for kind in self._together] if self._workers > 1 else []
        return [*alike, self._renew]

    def gains(self, alone: Mapping[Kind, Took]) -> tuple[float, float]:
        """Return how much more all of them do than one: reading, and drawing replies that end one after another.

        No less than one, and no more than so many times.
        """
        if self._workers == 1:
            return 1.0, 1.0
        found = {kind: self._workers * alone[kind].whole_s / undisturbed(s) for kind, s in self._together.items()}
        read, all_of = (min(max(found[kind], 1.0), float(self._workers)) for kind in (READ_MANY, UNEVEN))
        return read, all_of

    def renewed_s(self) -> float:
        """Return the seconds that changed weights take."""
        return max(undisturbed(self._renewed), 1e-4)

    def _time(self, kind: Kind) -> float:
        prompts, params = zip(*requests(kind, self._workers), strict=True)
        start = self._clock()
        self._pool.generate(prompts, params)
        took = self._clock() - start
        self._together.setdefault(kind, []).append(took)
        return took

    def _renew(self) -> None:
        """Let few replies begin, with weights that have changed and again as they are."""
        self._model.train()
        self._trainer.step(self._batch)
        self._model.eval()
        prompts, params = zip(*requests(BEGIN, self._workers), strict=True)
        times = []
        for _ in range(2):
            start = self._clock()
            self._pool.generate(prompts, params)
            times.append(self._clock() - start)
        self._renewed.append(times[0] - times[1])


class _Canned:
    """An engine that has its replies already, so that only what is done with them takes time."""

    def __init__(self, chat: ChatFormat, replies: Sequence[list[int]]) -> None:
        self.chat, self.replies = chat, replies

    def generate(self, prompts: Sequence[Sequence[int]], params: object, **_: object) -> list[Output]:
        each = len(self.replies) // len(prompts)
        return [Output(str(i // each), i % each, ids, "", finish_reason="stop") for i, ids in enumerate(self.replies)]


class _Checking:
    """Makes problems with their prompts, and checks replies to them: worked solutions, as tokens."""

    def __init__(self, chat: ChatFormat, environments: Sequence[Environment], clock: Callable[[], float]) -> None:
        self._chat, self._environments, self._clock = chat, environments, clock
        self._times: dict[tuple[int, int, int], list[float]] = {}
        self._tokens = 0.0  # of a reply, on the average

    def time(self) -> None:
        """Check replies, each to a problem of its own; as many to fewer problems; and those again, thrice as long."""
        for kind in (MANY, FEW, LONGER):
            self._times.setdefault(kind, []).append(self._seconds(*kind))

    def rates(self) -> dict[str, float]:
        """Return the seconds of a problem, of a reply, and of each of its tokens."""
        many_s, few_s, longer_s = (undisturbed(self._times[kind]) for kind in (MANY, FEW, LONGER))
        count, replies = len(self._environments), len(self._environments) * CHECKED
        problem_s = max(many_s - few_s, 0.0) / (count * (MANY[0] - FEW[0]))
        token_s = max(longer_s - few_s, 0.0) / (replies * self._tokens * (LONGER[2] - 1))
        reply_s = (few_s - count * FEW[0] * problem_s) / replies - self._tokens * token_s
        return {"problem_s": problem_s, "reply_s": max(reply_s, 0.1 * few_s / replies), "reply_token_s": token_s}

    def _seconds(self, problems: int, each: int, times: int) -> float:
        known = {environment.name: environment for environment in self._environments}
        start = self._clock()
        made = [one for e in self._environments for one in distinct_problems(e, problems, 0)]
        asked = self._clock() - start
        replies = [times * _worked(self._chat, known, one) for one in made for _ in range(each)]
        self._tokens = sum(map(len, replies)) / len(replies) / times
        canned = _Canned(self._chat, replies)
        start = self._clock()
        attempt(cast(Engine, canned), made, SamplingParams(n=each), environments=known)
        return asked + self._clock() - start


def _worked(chat: ChatFormat, environments: Mapping[str, Environment], problem: Problem) -> list[int]:
    """Return a problem's worked solution as the tokens of a reply."""
    solution = environments[problem.environment].solution(problem, random.Random(problem.key))
    ids, mask = chat.example([Message("user", problem.prompt), solution])
    return [token for token, own in zip(ids, mask, strict=True) if own]
