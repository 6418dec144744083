"""Speed: measures how fast this machine trains and samples a small model, for forecasts of runs like it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch

from leanseek.checkpoint.directory import empty_model
from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import this_cpu
from leanseek.cost.ledger import Charge
from leanseek.cost.rates import EngineRates, Rates, fixed_and_rate
from leanseek.data.batches import TokenStream
from leanseek.data.contamination import contamination
from leanseek.data.corpus import documents
from leanseek.data.tokens import tokenise, train_tokenizer
from leanseek.drawing import Drawing, engine_seconds
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import Output, SamplingParams
from leanseek.envs.environment import Environment, Problem, load_environment
from leanseek.evals.accuracy import distinct_problems
from leanseek.evals.attempts import attempt
from leanseek.kernels.threads import available_threads, share_out
from leanseek.messages import Message
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.count import causal_pairs, decode_flops_per_token, forward_flops, parameters
from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer
from leanseek.settings import Recipe, TrainSettings, load_recipe
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.trainer import Trainer

RECIPE = "laptop"
DOCUMENTS = 2000
TEXT, FEW_TEXTS, MANY_TEXTS = 128, 8, 32
# Replies that one engine draws at once in the stages of small recipes, and the problems that they are to.
ROWS, GROUP, PROMPT, REPLY = 256, 8, 16, 16
# A prompt whose attention is felt, and one whose cache is.
LONG, BEHIND = 512, 96
SOME, MORE = 16, 64
# Seconds after which no kind of work is timed once more.
PATIENCE_S = 10.0

# prompts, replies to each, tokens of a prompt, tokens of a reply (-n: all lengths up to n), whether experts are kept
Kind = tuple[int, int, int, int, bool]
READ_ONE, READ_MANY, READ_LONG = (1, 1, PROMPT, 1, False), (ROWS, 1, PROMPT, 1, False), (1, 1, LONG, 1, False)
BEGIN = (ROWS // GROUP, GROUP, PROMPT, 1, False)


def _decoding(rows: int, each: int, prompt: int, kept: bool = False) -> tuple[Kind, Kind]:
    """Return replies of one decoding step, which makes what the others reuse, and of more."""
    return (rows // each, each, prompt, 2, kept), (rows // each, each, prompt, 1 + REPLY, kept)


DECODE_ONE, DECODE_SOME = _decoding(1, 1, PROMPT), _decoding(SOME, 1, PROMPT)
DECODE_MORE, DECODE_MANY = _decoding(MORE, GROUP, PROMPT), _decoding(ROWS, GROUP, PROMPT)
DECODE_BEHIND, KEEP = _decoding(ROWS, GROUP, BEHIND), _decoding(ROWS, GROUP, PROMPT, True)
# Replies of all lengths up to twice as long: some end with every step.
UNEVEN = (ROWS, 1, PROMPT, -2 * REPLY, False)
KINDS: tuple[Kind, ...] = (
    *(READ_ONE, READ_MANY, READ_LONG, BEGIN, UNEVEN),
    *(*DECODE_ONE, *DECODE_SOME, *DECODE_MORE, *DECODE_MANY, *DECODE_BEHIND, *KEEP),
)


def measure_rates(repeats: int = 3, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Train and sample a small model with made-up weights and time it; about ten seconds.

    Args:
        repeats: timings of each kind, of which the second shortest counts.
        clock: seconds.
    """
    workers = share_out(None, "cpu")
    recipe = load_recipe(RECIPE, {"data.documents": DOCUMENTS})
    config = load_preset(recipe.model)
    environments = [load_environment(name) for name in recipe.environments]
    tokenizer, tokens, corpus = _corpus(recipe, config, environments, repeats, clock)
    model = initialise(empty_model(config, dtype="float32"), 0)
    training = _training(model, tokens, workers, repeats, clock)
    model.eval()
    problem_s, reply_s = _checking(ChatFormat(tokenizer), environments, repeats, clock)
    took = _sampling(model, tokenizer, 1, KINDS, repeats, clock)
    renewed_s = _renewing(model, tokenizer, tokens, workers, repeats, clock)
    together = (
        _sampling(model, tokenizer, workers, (READ_MANY, DECODE_MANY[1]), repeats, clock) if workers > 1 else took
    )
    torch.set_num_threads(available_threads())
    alone = _sampling(model, tokenizer, 1, KINDS, repeats, clock) if workers > 1 else took
    share_out(None, "cpu")
    row = this_cpu()
    cores = min(workers, usable_cores())
    return Rates(
        **training,
        engine=engine_rates(config, took),
        alone=engine_rates(config, alone),
        workers=workers,
        read_gain=_gain(workers, took[READ_MANY], together[READ_MANY]),
        decode_gain=_gain(workers, took[DECODE_MANY[1]], together[DECODE_MANY[1]]),
        renew_parameters_per_s=parameters(config).total / renewed_s,
        problem_s=problem_s,
        reply_s=reply_s,
        watts=row.watts * cores + row.idle_watts * (usable_cores() - cores),
        **corpus,
    )


def engine_rates(config: ModelConfig, took: Mapping[Kind, float]) -> EngineRates:
    """Return the rates of an engine from the seconds that some kinds of work took it.

    Args:
        config: of the model that it had.
        took: seconds of all KINDS.
    """
    layers = config.num_hidden_layers
    products = forward_flops(config, tokens=PROMPT, pairs=0, head_tokens=1)
    # Prompts that are read beyond those that the same replies have, and replies beyond those of the same prompts.
    prompt_s = max(took[READ_MANY] - took[BEGIN], 0.5 * took[READ_MANY]) / (ROWS - ROWS // GROUP)
    sample_s = max(took[BEGIN] - took[READ_ONE] - (ROWS // GROUP - 1) * prompt_s, 0.0) / (ROWS - 1)
    call_s = max(took[READ_ONE] - prompt_s - sample_s, 0.0)
    pairs = forward_flops(config, tokens=0, pairs=causal_pairs([LONG]), head_tokens=0)
    attention_s = max(took[READ_LONG] - call_s - prompt_s * LONG / PROMPT - sample_s, 0.05 * took[READ_LONG])

    def step_s(kinds: tuple[Kind, Kind]) -> float:
        begun, whole = (took[kind] for kind in kinds)
        return max(whole - begun, 0.3 * whole) / (REPLY - 1)

    at_none = decode_flops_per_token(config, 0)
    per_key = decode_flops_per_token(config, 1) - at_none
    many_s = step_s(DECODE_MANY)
    key_s = max(step_s(DECODE_BEHIND) - many_s, 0.01 * many_s) / (ROWS * (BEHIND - PROMPT))
    # Without attention; contexts grow while replies do.
    bare = {
        rows: max(step_s(kinds) - rows * key_s * (PROMPT + (REPLY + 2) / 2), 0.3 * step_s(kinds))
        for rows, kinds in {1: DECODE_ONE, SOME: DECODE_SOME, MORE: DECODE_MORE, ROWS: DECODE_MANY}.items()
    }
    few_s = max((bare[SOME] - bare[1]) / (SOME - 1), 0.01 * bare[SOME] / SOME)
    fixed_s = max(bare[1] - few_s, 0.0)
    each_s = {SOME: few_s} | {n: max(bare[n] - fixed_s, 0.1 * bare[n]) / n for n in (MORE, ROWS)}
    rates = EngineRates(
        layer_read_s=call_s / layers,
        read_flops_per_s=products / prompt_s,
        attend_read_flops_per_s=pairs / attention_s,
        layer_decode_s=fixed_s / layers,
        decode_flops_per_s=tuple((rows, at_none / seconds) for rows, seconds in each_s.items()),
        attend_flops_per_s=per_key / key_s,
        sample_s=sample_s,
        leave_s=0.0,
        keep_s=max(took[KEEP[1]] - took[DECODE_MANY[1]], 0.0) / (ROWS * (1 + REPLY)),
    )
    # What is left of replies that end one after another, beyond their reading and decoding.
    lengths = reply_lengths(UNEVEN[3])
    known_s = engine_seconds(config, rates, Drawing(ROWS, 1, PROMPT, list(lengths), ROWS))
    return replace(rates, leave_s=max(took[UNEVEN] - known_s, 0.0) / (len(lengths) - 1))


def _gain(engines: int, alone_s: float, together_s: float) -> float:
    """Return how much more engines do side by side than one does: no less, and no more than so many times."""
    return min(max(engines * alone_s / together_s, 1.0), float(engines))


def reply_lengths(tokens: int) -> range:
    """Return the lengths that a kind's replies have, in turn."""
    return range(1, 1 - tokens) if tokens < 0 else range(tokens, tokens + 1)


def _corpus(
    recipe: Recipe, config: ModelConfig, environments: Sequence[Environment], repeats: int, clock: Callable[[], float]
) -> tuple[Tokenizer, torch.Tensor, dict[str, float]]:
    """Make a small corpus; return its tokenizer, its tokens and how fast it was made."""
    levels, count = recipe.levels, recipe.eval.problems
    held_out = [one.prompt for e in environments for one in distinct_problems(e, count, 0, levels.get(e.name))]
    times: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(repeats):
        start = clock()
        tokenizer = train_tokenizer(recipe, config.vocab_size)
        learnt = clock()
        corpus = tokenise(recipe, tokenizer)
        encoded = clock()
        contamination(held_out, documents(recipe.seed, DOCUMENTS, environments, levels))
        for found, seconds in zip(times, (learnt - start, encoded - learnt, clock() - encoded), strict=True):
            found.append(seconds)
    learn_s, encode_s, search_s = map(_undisturbed, times)
    rates = {
        "learn_documents_per_s": DOCUMENTS / learn_s,
        "encode_documents_per_s": DOCUMENTS / encode_s,
        "search_documents_per_s": DOCUMENTS / search_s,
        "document_tokens": (corpus.facts.train_tokens + corpus.facts.validation_tokens) / DOCUMENTS,
    }
    return tokenizer, corpus.train, rates


def _training(
    model: Transformer, ids: torch.Tensor, workers: int, repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Return what optimiser steps take, from some over few texts and over many, with the MTP layer and without it."""
    meter = Charge("calibration")
    trainer = Trainer(model, NextToken(0.3, 1e-4), TrainSettings(steps=1000), meter, workers)
    streams = [TokenStream(ids, TEXT, rows, 0, bos_id=0) for rows in (FEW_TEXTS, MANY_TEXTS)]
    model.train()
    kinds = list(itertools.product((False, True), (0, 1)))
    flops: dict[tuple[bool, int], float] = {}
    times: dict[tuple[bool, int], list[float]] = {kind: [] for kind in kinds}
    # The first step of each makes what the others reuse.
    for step, (mtp, which) in itertools.product(range(repeats + 1), kinds):
        batch, before = replace(streams[which].batch(step), mtp=mtp), meter.flops
        start = clock()
        trainer.step(batch)
        if step:
            times[mtp, which].append(clock() - start)
        flops[mtp, which] = meter.flops - before
    took = {kind: _undisturbed(found) for kind, found in times.items()}
    fixed_s, rate = fixed_and_rate(*((flops[False, which], took[False, which]) for which in (0, 1)))
    found = {"layer_step_s": fixed_s / model.config.num_hidden_layers, "train_flops_per_s": rate}
    more = [
        (flops[True, n] - flops[False, n], max(took[True, n] - took[False, n], 0.01 * took[True, n])) for n in (0, 1)
    ]
    fixed_s, rate = fixed_and_rate(*more)
    return {**found, "mtp_step_s": fixed_s, "mtp_flops_per_s": rate}


def _sampling(
    model: Transformer,
    tokenizer: Tokenizer,
    workers: int,
    kinds: Sequence[Kind],
    repeats: int,
    clock: Callable[[], float],
) -> dict[Kind, float]:
    """Return the seconds of each kind of work, by some engines side by side; for several, as much for each."""
    pools = {
        kept: EnginePool(
            model,
            tokenizer,
            workers=workers,
            max_batch=workers * ROWS,
            max_context_tokens=max(LONG + 1, BEHIND + REPLY) + 1,
            record_experts=kept,
        )
        for kept in {kind[-1] for kind in kinds}
    }
    times: dict[Kind, list[float]] = {kind: [] for kind in kinds}
    end = clock() + PATIENCE_S
    for turn, kind in itertools.product(range(repeats), kinds):
        if turn and clock() > end:  # the machine is busy: what there is must do
            continue
        prompts, each, length, tokens, kept = kind
        texts = [[2 + (i + 7 * n) % 300 for i in range(length)] for n in range(workers * prompts)]
        params = [
            SamplingParams(max_tokens=reply, n=each, seed=1, ignore_eos=True, logprobs=0)
            for reply in itertools.islice(itertools.cycle(reply_lengths(tokens)), len(texts))
        ]
        start = clock()
        pools[kept].generate(texts, params)
        times[kind].append(clock() - start)
    return {kind: _undisturbed(found) for kind, found in times.items()}


def _renewing(
    model: Transformer,
    tokenizer: Tokenizer,
    ids: torch.Tensor,
    workers: int,
    repeats: int,
    clock: Callable[[], float],
) -> float:
    """Return the seconds that engines take longer where the model has learnt since they drew last."""
    pool = EnginePool(
        model, tokenizer, workers=workers, max_batch=workers * ROWS, max_context_tokens=PROMPT + REPLY + 2
    )
    texts = [[2 + (i + 7 * n) % 300 for i in range(PROMPT)] for n in range(workers * ROWS // GROUP)]
    params = SamplingParams(max_tokens=1 + REPLY // 2, n=GROUP, seed=1, ignore_eos=True)
    trainer = Trainer(model, NextToken(0.0, 0.0), TrainSettings(steps=1000), Charge("calibration"), workers)
    stream = TokenStream(ids, TEXT, FEW_TEXTS, 0, bos_id=0)
    times: tuple[list[float], list[float]] = ([], [])
    for step, again in itertools.product(range(repeats), (False, True)):
        if not again:
            model.train()
            trainer.step(stream.batch(step))
            model.eval()
        start = clock()
        pool.generate(texts, params)
        times[again].append(clock() - start)
    fresh_s, known_s = (_undisturbed(found) for found in times)
    return max(fresh_s - known_s, 1e-4)


class _Canned:
    """An engine that has its replies already, so that only what is done with them takes time."""

    def __init__(self, chat: ChatFormat, replies: Sequence[list[int]]) -> None:
        self.chat, self.replies = chat, replies

    def generate(self, prompts: Sequence[Sequence[int]], params: object, **_: object) -> list[Output]:
        each = len(self.replies) // len(prompts)
        return [Output(str(i // each), i % each, ids, "", finish_reason="stop") for i, ids in enumerate(self.replies)]


def _checking(
    chat: ChatFormat, environments: Sequence[Environment], repeats: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return the seconds of making a problem with its prompt, and of checking a reply: a worked solution, as tokens."""
    known = {environment.name: environment for environment in environments}

    def seconds(problems: int, each: int) -> float:
        start = clock()
        made = [one for e in environments for one in distinct_problems(e, problems, 0)]
        asked = clock() - start
        canned = _Canned(chat, [_worked(chat, known, one) for one in made for _ in range(each)])
        params = SamplingParams(n=each)
        start = clock()
        attempt(cast(Engine, canned), made, params, environments=known)
        return asked + clock() - start

    few, many = ([seconds(problems, each) for _ in range(repeats)] for problems, each in ((ROWS // 8, 8), (ROWS, 1)))
    count = len(environments)
    once_s, often_s = _undisturbed(few), _undisturbed(many)
    # As many replies, to fewer problems.
    problem_s = max(often_s - once_s, 0.0) / (count * (ROWS - ROWS // 8))
    return problem_s, max(once_s - count * ROWS // 8 * problem_s, 0.1 * once_s) / (count * ROWS)


def _worked(chat: ChatFormat, environments: Mapping[str, Environment], problem: Problem) -> list[int]:
    """Return a problem's worked solution as the tokens of a reply."""
    solution = environments[problem.environment].solution(problem, random.Random(problem.key))
    ids, mask = chat.example([Message("user", problem.prompt), solution])
    return [token for token, own in zip(ids, mask, strict=True) if own]


def _undisturbed(times: list[float]) -> float:
    """Return the second shortest time: the shortest is luck, and the longer ones are other processes' doing."""
    return sorted(times)[min(1, len(times) - 1)]
