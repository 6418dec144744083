"""Drawing: the seconds that engines take to read prompts and draw replies, by this machine's rates. No torch."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from leanseek.cost.rates import DecodeRates, EngineRates, Rates
from leanseek.engine.shares import engines_for, rows_of
from leanseek.model.config import ModelConfig
from leanseek.model.count import causal_pairs, decode_flops_per_token, forward_flops


@dataclass(frozen=True)
class Drawing:
    """Replies that a stage draws together.

    Args:
        prompts: how many.
        each: replies to each.
        prompt: tokens of a prompt.
        replies: lengths of replies in tokens, taken in turn until there are enough.
        rows: replies that run at once, all engines together.
        kept: whether the experts that tokens chose are kept.
    """

    prompts: int
    each: int
    prompt: int
    replies: Sequence[float]
    rows: int
    kept: bool = False

    @property
    def samples(self) -> int:
        """Replies in all."""
        return self.prompts * self.each


def read_seconds(config: ModelConfig, rates: EngineRates, texts: float, tokens: int) -> float:
    """Return the seconds of one call that reads so many prompts of so many tokens."""
    products = texts * forward_flops(config, tokens=tokens, pairs=0, head_tokens=0)
    attention = texts * forward_flops(config, tokens=0, pairs=causal_pairs([tokens]), head_tokens=0)
    fixed_s = config.num_hidden_layers * rates.layer_read_s + texts * rates.text_s
    return fixed_s + products / rates.read_flops_per_s + attention / rates.attend_read_flops_per_s


def step_seconds(config: ModelConfig, rates: EngineRates, rows: float, context: float) -> float:
    """Return the seconds of one decoding step for so many texts, each with so many tokens in the cache."""
    return config.num_hidden_layers * rates.layer_decode_s + rows * _token_seconds(config, rates, rows, context)


def decode_speed(config: ModelConfig, rates: EngineRates, batch: int, context: int, tokens: int) -> float:
    """Return the tokens a second of replies that are drawn together and told one by one, once their prompt is read.

    Args:
        config: the model's.
        rates: of the engine.
        batch: replies.
        context: tokens of the prompt.
        tokens: of each reply.
    """
    step_s = step_seconds(config, rates, batch, context + (tokens + 1) / 2)
    return batch / (step_s + rates.tell_step_s + batch * rates.tell_s)


def read_speed(config: ModelConfig, rates: EngineRates, tokens: int) -> float:
    """Return the tokens a second of a prompt that is read alone, up to its reply's first token."""
    return tokens / (read_seconds(config, rates, 1, tokens) + rates.sample_s + rates.tell_step_s + rates.tell_s)


def drawing_seconds(config: ModelConfig, rates: Rates, work: Drawing) -> float:
    """Return the seconds of a stage's engines: as many as are worth a thread each, side by side."""
    engines = engines_for(work.samples, rates.workers)
    read_s, decode_s = _parts(config, rates.engine, work, engines, rows_of(work.rows, rates.workers))
    # What an engine does alone takes longer beside others, which do as much.
    read_s, decode_s = (
        read_s / _gain(engines, rates, rates.read_gain),
        decode_s / _gain(engines, rates, rates.decode_gain),
    )
    return engines * (read_s + decode_s)


def engine_seconds(config: ModelConfig, rates: EngineRates, work: Drawing) -> float:
    """Return the seconds of one engine that does all of the work."""
    return sum(_parts(config, rates, work, 1, work.rows))


def _parts(config: ModelConfig, own: EngineRates, work: Drawing, engines: int, rows: int) -> tuple[float, float]:
    """Return the seconds of reading and of decoding of one of some engines that share the work."""
    lengths = list(itertools.islice(itertools.cycle([max(round(n), 1) for n in work.replies]), work.samples))[::engines]
    turns = _turns(lengths, rows, work.each)
    layers = config.num_hidden_layers
    # The first call's fixed part is in `read_seconds`.
    read_s = read_seconds(config, own, turns.texts, work.prompt) + (turns.reads - 1) * layers * own.layer_read_s
    read_s += len(lengths) * own.sample_s
    context = work.prompt + sum((n - 1) * n / 2 for n in lengths) / max(turns.row_steps, 1)
    decode_s = sum(steps * step_seconds(config, own, count, context) for count, steps in turns.steps.items())
    decode_s += turns.changes * own.leave_s
    decode_s += (turns.row_steps + len(lengths)) * own.keep_s if work.kept else 0.0
    return read_s, decode_s


def _gain(engines: int, rates: Rates, all_together: float) -> float:
    return 1.0 if engines == 1 else 1 + (all_together - 1) * (engines - 1) / (rates.workers - 1)


def _token_seconds(config: ModelConfig, rates: EngineRates, rows: float, context: float) -> float:
    at_none = decode_flops_per_token(config, 0)
    per_key = decode_flops_per_token(config, 1) - at_none
    fewer, more, share = _between(rates.decode, rows)
    return sum(
        weight * (at_none / one.flops_per_s + context * per_key / one.attend_flops_per_s)
        for one, weight in ((fewer, 1 - share), (more, share))
    )


def _between(rates: Sequence[DecodeRates], rows: float) -> tuple[DecodeRates, DecodeRates, float]:
    """Return the rates between which so many rows lie, and how far on the line from the one to the other."""
    for fewer, more in itertools.pairwise(rates):
        if rows <= more.texts:
            return fewer, more, max(rows - fewer.texts, 0.0) / (more.texts - fewer.texts)
    return rates[-1], rates[-1], 0.0


@dataclass
class _Turns:
    """What an engine does: calls that read, the prompts that they read, and decoding steps by their rows.

    Changes are steps for another number of rows than the step before.
    """

    reads: int = 0
    texts: int = 0
    changes: int = 0
    steps: Counter[int] = field(default_factory=Counter)

    @property
    def row_steps(self) -> int:
        """Tokens that are decoded."""
        return sum(rows * steps for rows, steps in self.steps.items())


def _turns(lengths: Sequence[int], rows: int, each: int) -> _Turns:
    """Follow an engine: whenever rows are free, waiting replies are read for; a reply's first token comes with that."""
    turns, ends, now, begun, before = _Turns(), list[int](), 0, 0, 0
    while begun < len(lengths) or ends:
        let_in = lengths[begun : begun + rows - len(ends)]
        if let_in:
            turns.reads += 1
            turns.texts += -(-len(let_in) // each)
            begun += len(let_in)
            for length in let_in:
                if length > 1:
                    heapq.heappush(ends, now + length - 1)
            continue
        turns.changes += len(ends) != before
        before = len(ends)
        turns.steps[before] += ends[0] - now
        now = ends[0]
        while ends and ends[0] == now:
            heapq.heappop(ends)
    return turns
