"""Speed: measures how fast this machine trains and samples a small model, for forecasts of runs like it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import torch

from leanseek.checkpoint.directory import empty_model
from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import this_cpu
from leanseek.cost.ledger import Charge
from leanseek.cost.rates import Rates, fixed_and_rate
from leanseek.data.batches import TokenStream
from leanseek.data.corpus import documents
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.envs.environment import load_environment
from leanseek.kernels.threads import share_out
from leanseek.model.config import load_preset
from leanseek.model.count import causal_pairs, decode_flops_per_token, forward_flops
from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer
from leanseek.sections.training import TrainSettings
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.trainer import Trainer

MODEL = "laptop"
TEXT, FEW_TEXTS, MANY_TEXTS = 128, 8, 32
PROMPT, REPLY, FEW_REPLIES, MANY_REPLIES, GROUP = 16, 24, 16, 512, 8
DOCUMENTS = 1500


def measure_rates(repeats: int = 5, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Train and sample a small model with made-up weights and time it; a few seconds.

    Args:
        repeats: timings of each kind, of which the second shortest counts.
        clock: seconds.
    """
    workers = share_out(None, "cpu")
    environments = [load_environment(name) for name in ("running_total", "grid_walk", "largest")]
    config = load_preset(MODEL)
    start = clock()
    texts = list(itertools.islice(documents(0, DOCUMENTS, environments), DOCUMENTS))
    made_s = clock() - start
    tokenizer = Tokenizer.train(texts, config.vocab_size)
    start = clock()
    ids = [i for one in tokenizer.encode_batch(texts) for i in one]
    documents_per_s = DOCUMENTS / (made_s + clock() - start)
    model = initialise(empty_model(config, dtype="float32"), 0)
    fixed_s, train_rate = fixed_and_rate(*_training(model, torch.tensor(ids), workers, repeats, clock))
    model.eval()
    decode_s, decode_rate, prefill_rate = _sampling(model, tokenizer, workers, repeats, clock)
    cores, row = min(workers, usable_cores()), this_cpu()
    watts = row.watts * cores + row.idle_watts * (usable_cores() - cores)
    layers = config.num_hidden_layers
    return Rates(fixed_s / layers, train_rate, decode_s / layers, decode_rate, prefill_rate, documents_per_s, watts)


def _training(
    model: Transformer, ids: torch.Tensor, workers: int, repeats: int, clock: Callable[[], float]
) -> list[tuple[float, float]]:
    """Return the FLOPs and seconds of an optimiser step over few texts and over many, timed in turn."""
    meter = Charge("calibration")
    trainer = Trainer(model, NextToken(0.0, 1e-4), TrainSettings(steps=1000), meter, workers)
    streams = [TokenStream(ids, TEXT, rows, 0, bos_id=0) for rows in (FEW_TEXTS, MANY_TEXTS)]
    model.train()
    flops, times = [0.0, 0.0], [[0.0] * 0, [0.0] * 0]
    for step, which in itertools.product(range(repeats + 1), (0, 1)):
        batch, before, start = streams[which].batch(step), meter.flops, clock()
        trainer.step(batch)
        times[which].append(clock() - start)
        flops[which] = meter.flops - before
    # The first step of each makes what the others reuse.
    return [(amount, _undisturbed(seconds[1:])) for amount, seconds in zip(flops, times, strict=True)]


def _sampling(
    model: Transformer, tokenizer: Tokenizer, workers: int, repeats: int, clock: Callable[[], float]
) -> tuple[float, float, float]:
    """Return the fixed seconds of a decoding step, and the FLOP/s of decoding and of reading prompts."""
    kinds = ((FEW_REPLIES, GROUP, 1), (FEW_REPLIES, GROUP, REPLY), (MANY_REPLIES, GROUP, 1))
    kinds = (*kinds, (MANY_REPLIES, GROUP, REPLY), (MANY_REPLIES, 1, 1))
    times: dict[tuple[int, int, int], list[float]] = {kind: [] for kind in kinds}
    for _, (replies, each, tokens) in itertools.product(range(repeats), kinds):
        engine = EnginePool(model, tokenizer, workers=workers, max_batch=replies, max_context_tokens=PROMPT + REPLY)
        prompts = [[2 + (i + 7 * n) % 300 for i in range(PROMPT)] for n in range(replies // each)]
        params = SamplingParams(max_tokens=tokens, n=each, seed=1, ignore_eos=True)
        start = clock()
        engine.generate(prompts, params)
        times[replies, each, tokens].append(clock() - start)
    took = {kind: _undisturbed(found) for kind, found in times.items()}
    config, steps = model.config, REPLY - 1
    flops = decode_flops_per_token(config, PROMPT + REPLY // 2)
    points = []
    for replies in (FEW_REPLIES, MANY_REPLIES):
        whole = took[replies, GROUP, REPLY]
        # Most of it is decoding; a disturbance while prompts alone were read must not say otherwise.
        step_s = max(whole - took[replies, GROUP, 1], whole / 2) / steps
        points.append((replies * flops, step_s))
    fixed, rate = fixed_and_rate(*points)
    read = MANY_REPLIES * forward_flops(config, tokens=PROMPT, pairs=causal_pairs([PROMPT]), head_tokens=1)
    return fixed, rate, read / took[MANY_REPLIES, 1, 1]


def _undisturbed(times: list[float]) -> float:
    """Return the second shortest time: the shortest is luck, and the longer ones are other processes' doing."""
    return sorted(times)[min(1, len(times) - 1)]
