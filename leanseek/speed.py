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
)
from leanseek.checkpoint.directory import empty_model
from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import this_cpu
from leanseek.cost.ledger import Charge
from leanseek.cost.rates import Rates, fixed_and_rate
from leanseek.data.batches import TokenStream
from leanseek.data.contamination import contamination
from leanseek.data.corpus import documents
from leanseek.data.tokens import tokenise, train_tokenizer
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
from leanseek.pulse import Pulse
from leanseek.sections.training import TrainSettings
from leanseek.settings import Recipe, load_recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.objectives.next_token import NextToken, mean_loss
from leanseek.train.trainer import Trainer
from leanseek.turns import Seconds, Turns

RECIPE = "laptop"
DOCUMENTS = 1000
TEXT, FEW_TEXTS, MANY_TEXTS, LOOK_TEXTS = 128, 4, 32, 16
PATIENCE_S = 6.0
# Replies that are checked for each task: problems, replies to each, and how often a solution is said over.
CHECKED = 32
MANY, FEW, LONGER = (CHECKED, 1, 1), (CHECKED // GROUP, GROUP, 1), (CHECKED // GROUP, GROUP, 3)


def measure_rates(
    patience_s: float = PATIENCE_S,
    clock: Callable[[], float] = time.perf_counter,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Rates:
    """Train and sample a small model with made-up weights and time it; about six seconds.

    Args:
        patience_s: seconds after which nothing is timed once more.
        clock: seconds.
        on_progress: called with the share that is done.
    """
    workers = share_out(None, "cpu")
    turns = Turns(Pulse(workers, clock).seconds, clock, patience_s, on_progress)
    recipe = load_recipe(RECIPE, {"data.documents": DOCUMENTS})
    config = load_preset(recipe.model)
    environments = [load_environment(name) for name in recipe.environments]
    corpus = _Corpus(recipe, config, environments, clock)
    turns.add("corpus", corpus.time)
    tokenizer = corpus.tokenizer
    model = initialise(empty_model(config, dtype="float32"), 0)
    training = _Training(model, corpus.tokens, workers, clock)
    for step in training.steps:
        turns.add(step, partial(training.time, step), together=True)
    turns.add("look", training.look)
    checking = _Checking(ChatFormat(tokenizer), environments, clock)
    turns.add("checking", checking.time)
    pools = _Pools(model, tokenizer, corpus.tokens, workers, clock)
    turns.add("renewed", pools.renew, together=True)
    calls, alone = Calls(model, tokenizer, clock), Calls(model, tokenizer, clock)
    for kind in KINDS:
        turns.add(("one", kind), partial(calls.time, kind))
        if workers > 1 and kind in CALLS:
            turns.add(("alone", kind), partial(_with_all, partial(alone.time, kind)), together=True)
        if workers > 1 and kind in (READ_MANY, UNEVEN):
            turns.add(("together", kind), partial(pools.time, kind), together=True)
    turns.go_on()
    took = {kind: Took(*turns.took(("one", kind))) for kind in KINDS}
    engine = engine_rates(config, took)
    rates_alone = engine
    if workers > 1:
        rates_alone = engine_rates(config, {kind: Took(*turns.took(("alone", kind))) for kind in CALLS}, engine)
    gains = {READ_MANY: 1.0, UNEVEN: 1.0}
    for kind in gains if workers > 1 else ():  # no less than one engine does, and no more than so many times
        (seconds,) = turns.took(("together", kind))
        gains[kind] = min(max(workers * took[kind].whole_s / seconds, 1.0), float(workers))
    changed_s, same_s = turns.took("renewed")
    row, cores = this_cpu(), min(workers, usable_cores())
    return Rates(
        **training.rates({step: turns.took(step)[0] for step in training.steps}, *turns.took("look")),
        engine=engine,
        alone=rates_alone,
        workers=workers,
        read_gain=gains[READ_MANY],
        decode_gain=gains[UNEVEN],
        renew_parameters_per_s=parameters(config).total / max(changed_s - same_s, 1e-4),
        watts=row.watts * cores + row.idle_watts * (usable_cores() - cores),
        pulse_s=turns.pulse_s(),
        slower_pulse_s=turns.pulse_s(together=True),
        **checking.rates(*turns.took("checking")),
        **corpus.rates(*turns.took("corpus")),
    )


def _with_all(call: Callable[[], Seconds]) -> Seconds:
    """Call something with all threads in torch, where it has one otherwise."""
    torch.set_num_threads(available_threads())
    try:
        return call()
    finally:
        torch.set_num_threads(1)


class _Corpus:
    """Makes a small corpus; how fast that is, and what comes out of it."""

    def __init__(
        self, recipe: Recipe, config: ModelConfig, environments: Sequence[Environment], clock: Callable[[], float]
    ) -> None:
        self._recipe, self._config, self._environments, self._clock = recipe, config, environments, clock
        count = recipe.eval.problems
        self._held_out = [
            one.prompt for e in environments for one in distinct_problems(e, count, 0, recipe.levels.get(e.name))
        ]
        self.tokenizer: Tokenizer
        self.tokens: torch.Tensor
        self._count = 0

    def time(self) -> tuple[float, float, float]:
        """Return the seconds of a vocabulary, of the tokens, and of a search for held-out problems."""
        recipe, clock = self._recipe, self._clock
        start = clock()
        self.tokenizer = train_tokenizer(recipe, self._config.vocab_size)
        learnt = clock()
        made = tokenise(recipe, self.tokenizer)
        encoded = clock()
        contamination(self._held_out, documents(recipe.seed, DOCUMENTS, self._environments, recipe.levels))
        self.tokens, self._count = made.train, made.facts.train_tokens + made.facts.validation_tokens
        return learnt - start, encoded - learnt, clock() - encoded

    def rates(self, learn_s: float, encode_s: float, search_s: float) -> dict[str, float]:
        """Return documents a second."""
        return {
            "learn_documents_per_s": DOCUMENTS / learn_s,
            "encode_documents_per_s": DOCUMENTS / encode_s,
            "search_documents_per_s": DOCUMENTS / search_s,
            "document_tokens": self._count / DOCUMENTS,
        }


class _Training:
    """Takes optimiser steps, over few texts and over many, with the MTP layer and without it.

    And reads texts with the model itself, without learning.
    """

    def __init__(self, model: Transformer, ids: torch.Tensor, workers: int, clock: Callable[[], float]) -> None:
        self._model, self._clock, self._meter = model, clock, Charge("calibration")
        self._trainer = Trainer(model, NextToken(0.3, 1e-4), TrainSettings(steps=1000), self._meter, workers)
        self._streams = [TokenStream(ids, TEXT, rows, 0, bos_id=0) for rows in (FEW_TEXTS, MANY_TEXTS)]
        self._read = TokenStream(ids, TEXT, LOOK_TEXTS, 0, bos_id=0).batch(0)
        self.steps = [(False, 0), (False, 1), (True, 1)]  # with the MTP layer; few texts or many
        self._flops: dict[tuple[bool, int], float] = {}
        self._numbers = itertools.count()
        self.time((True, 0))  # the first step makes what the others reuse

    def time(self, kind: tuple[bool, int]) -> tuple[float]:
        """Return the seconds of a step."""
        mtp, which = kind
        batch, before = replace(self._streams[which].batch(next(self._numbers)), mtp=mtp), self._meter.flops
        self._model.train()
        start = self._clock()
        self._trainer.step(batch)
        took = self._clock() - start
        self._model.eval()
        self._flops[kind] = self._meter.flops - before
        return (took,)

    def look(self) -> tuple[float]:
        """Return the seconds of reading."""
        start = self._clock()
        mean_loss(self._model, [self._read])
        return (self._clock() - start,)

    def rates(self, took: Mapping[tuple[bool, int], float], look_s: float) -> dict[str, float]:
        """Return what a step takes, and more of it with the MTP layer, and how fast texts are read."""
        config, flops = self._model.config, self._flops
        fixed_s, rate = fixed_and_rate(*((flops[False, which], took[False, which]) for which in (0, 1)))
        layer_s = fixed_s / config.num_hidden_layers
        # The MTP layer is one more, whatever there is in a step.
        more_s, more = took[True, 1] - took[False, 1], flops[True, 1] - flops[False, 1]
        mtp_s = min(layer_s, 0.5 * max(more_s, 0.01 * took[True, 1]))
        read = forward_flops(config, tokens=LOOK_TEXTS * TEXT, pairs=causal_pairs([TEXT] * LOOK_TEXTS))
        return {
            "layer_step_s": layer_s,
            "train_flops_per_s": rate,
            "mtp_step_s": mtp_s,
            "mtp_flops_per_s": more / max(more_s - mtp_s, mtp_s, 1e-6),
            "forward_flops_per_s": read / look_s,
        }


class _Pools:
    """Engines side by side: how long they take together, and to take up changed weights."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, ids: torch.Tensor, workers: int, clock: Callable[[], float]
    ) -> None:
        self._model, self._workers, self._clock = model, workers, clock
        longest = PROMPT + max(UNEVEN.replies) + 1
        rows = workers * ROWS
        self._pool = EnginePool(model, tokenizer, workers=workers, max_batch=rows, max_context_tokens=longest)
        self._trainer = Trainer(model, NextToken(0.0, 0.0), TrainSettings(steps=1000), Charge("calibration"), workers)
        self._batch = TokenStream(ids, TEXT, FEW_TEXTS, 0, bos_id=0).batch(0)

    def time(self, kind: Kind) -> tuple[float]:
        """Return the seconds of all of them for as much work each."""
        prompts, params = zip(*requests(kind, self._workers), strict=True)
        start = self._clock()
        self._pool.generate(prompts, params)
        return (self._clock() - start,)

    def renew(self) -> tuple[float, float]:
        """Return the seconds until few replies have begun: with weights that have changed, and again as they are."""
        self._model.train()
        self._trainer.step(self._batch)
        self._model.eval()
        return self.time(BEGIN)[0], self.time(BEGIN)[0]


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
        self._tokens = 0.0  # of a reply, on the average

    def time(self) -> tuple[float, ...]:
        """Check replies, each to a problem of its own; as many to fewer problems; and those again, thrice as long."""
        return tuple(self._seconds(*kind) for kind in (MANY, FEW, LONGER))

    def rates(self, many_s: float, few_s: float, longer_s: float) -> dict[str, float]:
        """Return the seconds of a problem, of a reply, and of each of its tokens."""
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
