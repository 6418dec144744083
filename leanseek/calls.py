"""Calls: how long an engine's calls take, timed one by one, and the rates that follow from them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from leanseek.cost.rates import DecodeRates, EngineRates
from leanseek.drawing import Drawing, engine_seconds
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.model.config import ModelConfig
from leanseek.model.count import causal_pairs, decode_flops_per_token, forward_flops
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer

# Replies that one engine draws at once in the stages of small recipes, and the problems that they are to.
ROWS, GROUP, PROMPT = 256, 8, 16
# Prompts whose reading is mostly products, and whose attention is felt.
MIDDLE, LONG = 128, 512
# Replies at once at which decoding is timed, with a prompt that is hardly felt and one whose cache is.
SEVERAL, BEHIND = (1, 8, 64, ROWS), 128
# How often a short call is timed where a long one is once: a moment of another process is as long as all of it.
SHORT_TURNS = 4
# Decoding steps that are timed, more of short ones, and those before them, which make what the others reuse.
STEPS, SHORT_STEPS, FIRST = 6, 16, 1


@dataclass(frozen=True)
class Kind:
    """Work for an engine.

    Args:
        prompts: how many.
        each: replies to each.
        prompt: tokens of a prompt.
        replies: lengths of replies, taken in turn.
        kept: whether the experts that tokens chose are kept.
        told: whether every other step tells its tokens, as a server wants them.
    """

    prompts: int
    each: int
    prompt: int
    replies: tuple[int, ...] = (1,)
    kept: bool = False
    told: bool = False

    @property
    def rows(self) -> int:
        """Replies, all of which run at once."""
        return self.prompts * self.each


class Took(NamedTuple):
    """Seconds of one engine's work.

    Args:
        whole_s: all of it.
        step_s: a decoding step in the midst of it; 0.0 where there is none.
        told_s: one that tells its tokens, likewise.
    """

    whole_s: float
    step_s: float = 0.0
    told_s: float = 0.0


def _decoding(rows: int, prompt: int, told: bool = False) -> Kind:
    # One prompt: how a reply began makes no difference to the steps.
    return Kind(1, rows, prompt, (1 + FIRST + (STEPS if rows == ROWS else SHORT_STEPS),), told=told)


READ_SHORT, READ_MIDDLE, READ_LONG = (Kind(1, 1, tokens) for tokens in (PROMPT, MIDDLE, LONG))
READ_MANY, BEGIN = Kind(ROWS, 1, PROMPT), Kind(ROWS // GROUP, GROUP, PROMPT)
# With one reply and with as many as there are in stages every other step tells its tokens, so that the others tell what
# that takes.
DECODE = {rows: (_decoding(rows, PROMPT, rows in (1, ROWS)), _decoding(rows, BEHIND)) for rows in SEVERAL}
TELL_ONE, TELL = (DECODE[rows][0] for rows in (1, ROWS))
# Once more, with experts that are kept.
KEEP = replace(TELL, told=False, kept=True)
# Replies of all lengths: some end with every step.
UNEVEN = Kind(ROWS, 1, PROMPT, tuple(range(1, 2 * STEPS + 1)))
# What a plan of `leanseek bench` rests on, as far as it depends on how many threads there are in torch; and what one of
# a recipe's stages does besides.
CALLS = (READ_SHORT, READ_MIDDLE, READ_LONG, *itertools.chain(*DECODE.values()))
KINDS = (*CALLS, READ_MANY, BEGIN, KEEP, UNEVEN)


class Calls:
    """Times an engine.

    Args:
        model: that it has.
        tokenizer: the model's.
        clock: seconds.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, clock: Callable[[], float]) -> None:
        self._model, self._tokenizer, self._clock = model, tokenizer, clock
        self._engines: dict[Kind, Engine] = {}

    def time(self, kind: Kind) -> Took:
        """Let an engine do a kind of work; of short work, done several times, the middle counts."""
        if kind not in self._engines:
            self._engines[kind] = Engine(
                self._model,
                self._tokenizer,
                max_batch=kind.rows,
                max_context_tokens=kind.prompt + max(kind.replies) + 1,
                record_experts=kind.kept,
            )
        found = [self._timed(self._engines[kind], kind) for _ in range(SHORT_TURNS if kind.rows == 1 else 1)]
        return Took(*map(statistics.median, zip(*found, strict=True)))

    def _timed(self, engine: Engine, kind: Kind) -> Took:
        clock, times = self._clock, list[float]()
        start = clock()
        for prompt, params in requests(kind):
            engine.add(prompt, params)
        while engine.has_work:
            before = clock()
            if kind.told and len(times) % 2:
                engine.step()
            else:
                engine.advance()
            times.append(clock() - before)
        whole_s = clock() - start
        # The first call reads, the last one hands the replies over.
        steps, told = times[1 + FIRST : -1], list[float]()
        if kind.told:
            steps, told = ([s for n, s in enumerate(steps, 1 + FIRST) if n % 2 == odd] for odd in (0, 1))
        # Now and then a step begins a block of the cache: of many steps that is part of the mean. Of few, which are
        # long, one that was disturbed would be as much.
        middle = statistics.median if kind.rows == ROWS else statistics.fmean
        return Took(whole_s, *(middle(some) if some else 0.0 for some in (steps, told)))


def requests(kind: Kind, times: int = 1) -> Iterator[tuple[list[int], SamplingParams]]:
    """Yield the prompts of a kind of work and how their replies are drawn; `times` as many."""
    for number, reply in zip(range(times * kind.prompts), itertools.cycle(kind.replies), strict=False):
        prompt = [2 + (at + 7 * number) % 300 for at in range(kind.prompt)]
        yield prompt, SamplingParams(max_tokens=reply, n=kind.each, seed=1, ignore_eos=True, logprobs=0)


def engine_rates(config: ModelConfig, took: Mapping[Kind, Took], other: EngineRates | None = None) -> EngineRates:
    """Return the rates of an engine from the seconds that some kinds of work took it.

    Args:
        config: of the model that it had.
        took: KINDS; or CALLS alone.
        other: of an engine with another number of threads, whose rates hold for what is not in CALLS.
    """
    call_s, token_s, pair_s = _reading(config, *(took[kind].whole_s for kind in (READ_SHORT, READ_MIDDLE, READ_LONG)))
    if other is not None:
        text_s, sample_s, keep_s = other.text_s, other.sample_s, other.keep_s
    else:
        # Of many prompts, all of which wait for one call; and of as many replies to fewer prompts.
        known_s = PROMPT * token_s + causal_pairs([PROMPT]) * pair_s
        many_s, few_s = (took[kind].whole_s - call_s - kind.prompts * known_s for kind in (READ_MANY, BEGIN))
        # The call's own seconds are with one text and one reply.
        text_s = max(many_s - few_s, 0.0) / (READ_MANY.prompts - BEGIN.prompts)
        sample_s = max(few_s - (BEGIN.prompts - 1) * text_s, 0.0) / (ROWS - 1)
        keep_s = max(took[KEEP].step_s - took[TELL].step_s, 0.0) / ROWS
    fixed_s, decode = _decode(config, took)
    tell_one_s, tell_s = (max(took[kind].told_s - took[kind].step_s, 0.0) for kind in (TELL_ONE, TELL))
    tell_each_s = max(tell_s - tell_one_s, 0.0) / (ROWS - 1)
    layers = config.num_hidden_layers
    rates = EngineRates(
        layer_read_s=max(call_s - text_s - sample_s, 0.0) / layers,
        text_s=text_s,
        read_flops_per_s=forward_flops(config, tokens=1, pairs=0, head_tokens=0) / token_s,
        attend_read_flops_per_s=forward_flops(config, tokens=0, pairs=1, head_tokens=0) / pair_s,
        layer_decode_s=fixed_s / layers,
        decode=decode,
        sample_s=sample_s,
        leave_s=0.0 if other is None else other.leave_s,
        keep_s=keep_s,
        tell_step_s=max(tell_one_s - tell_each_s, 0.0),
        tell_s=tell_each_s,
    )
    if other is not None:
        return rates
    # What is left of replies that end one after another, beyond their reading and decoding.
    known_s = engine_seconds(config, rates, Drawing(ROWS, 1, PROMPT, UNEVEN.replies, ROWS))
    return replace(rates, leave_s=max(took[UNEVEN].whole_s - known_s, 0.0) / (len(UNEVEN.replies) - 1))


def _reading(config: ModelConfig, short_s: float, middle_s: float, long_s: float) -> tuple[float, float, float]:
    """Return the seconds of a call, of a token and of a (query, key) pair, from prompts read alone; none is negative.

    Three lengths, three unknowns; what a disturbance would make negative is nought, and the others take it over.
    """
    pairs = {tokens: causal_pairs([tokens]) for tokens in (PROMPT, MIDDLE, LONG)}
    slopes = (middle_s - short_s) / (MIDDLE - PROMPT), (long_s - middle_s) / (LONG - MIDDLE)
    each = (pairs[MIDDLE] - pairs[PROMPT]) / (MIDDLE - PROMPT), (pairs[LONG] - pairs[MIDDLE]) / (LONG - MIDDLE)
    whole_s = max(long_s / LONG, 1e-12)
    pair_s = max((slopes[1] - slopes[0]) / (each[1] - each[0]), 0.01 * whole_s / LONG)
    token_s = max(slopes[0] - each[0] * pair_s, 0.05 * whole_s)
    return max(short_s - PROMPT * token_s - pairs[PROMPT] * pair_s, 0.0), token_s, pair_s


def _decode(config: ModelConfig, took: Mapping[Kind, Took]) -> tuple[float, tuple[DecodeRates, ...]]:
    """Return the fixed seconds of a step, and the rates of a token and of its attention by how many are at once."""
    at_none = decode_flops_per_token(config, 0)
    per_key = decode_flops_per_token(config, 1) - at_none
    grown = BEHIND - PROMPT
    key_s, bare_s = {}, {}
    for rows, kinds in DECODE.items():
        near_s, far_s = (took[kind].step_s for kind in kinds)
        key_s[rows] = max(far_s - near_s, 0.01 * near_s) / (rows * grown)
        # By the mean context of the steps that are timed.
        context = PROMPT + kinds[0].replies[0] / 2
        bare_s[rows] = max(near_s - rows * context * key_s[rows], 0.3 * near_s)
    # What one reply alone takes is the fixed part and as much as each of a few takes more.
    one, few = SEVERAL[:2]
    fixed_s = max(bare_s[one] - max((bare_s[few] - bare_s[one]) / (few - one), 0.0), 0.0)
    each_s = {rows: max(bare_s[rows] - fixed_s, 0.01 * bare_s[rows]) / rows for rows in SEVERAL}
    return fixed_s, tuple(
        DecodeRates(rows, at_none / seconds, per_key / key_s[rows]) for rows, seconds in each_s.items()
    )
