"""Speed: how fast kernels, decoding and reading prompts are here, beside what the machine can do at most."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from leanseek.checkpoint.packed import FORMS
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError
from leanseek.kernels.limits import Limits
from leanseek.kernels.packed import Packed, empty_packed, packed_experts, packed_linear
from leanseek.kernels.stored import SCALED, Stored, StoredExperts, stored_experts, stored_linear
from leanseek.model.config import ModelConfig
from leanseek.model.count import chosen_share
from leanseek.model.experts import Experts
from leanseek.model.transformer import Transformer

# Weights are taken in turn from copies that together are larger than caches: a model's are never there.
LARGER_THAN_CACHES = 256 << 20
WARM_STEPS = 2


def kernel_rows(
    config: ModelConfig, form: str, limits: Limits, *, rows: tuple[int, ...], repeats: int = 5
) -> Iterator[dict[str, Any]]:
    """Yield how fast the native kernels are at a model's shapes.

    Args:
        config: of a model with experts, or a dense one.
        form: of the weights: "bf16", "fp8", "int8" or "int4".
        limits: of this machine.
        rows: tokens of a call.
        repeats: of each.
    """
    dim = config.hidden_size
    outputs, inputs = config.num_attention_heads * config.v_head_dim, dim
    copies = _copies(form, outputs, inputs)
    for count in rows:
        x = torch.randn(count, inputs)
        turn = iter(range(1 << 62))
        seconds = _seconds(lambda x=x, turn=turn: _product(x, copies[next(turn) % len(copies)]), repeats)
        yield _kernel_row(
            f"linear {inputs}x{outputs}", count, copies[0].nbytes, 2 * count * outputs * inputs, seconds, limits
        )
    if not config.n_routed_experts:
        return
    width, experts, chosen = config.moe_intermediate_size, config.n_routed_experts, config.num_experts_per_tok
    mix, held_bytes = _mixture(form, dim, width, experts)
    for count in rows:
        x, weights = torch.randn(count, dim), torch.ones(count, chosen)
        generator = torch.Generator().manual_seed(0)
        choices = [torch.rand(count, experts, generator=generator).argsort(-1)[:, :chosen] for _ in range(8)]
        turn = iter(range(1 << 62))
        seconds = _seconds(
            lambda x=x, w=weights, c=choices, turn=turn: mix(x, w, c[next(turn) % 8]),
            repeats,
        )
        used = statistics.mean(len(choice.unique()) for choice in choices)
        size = int(used / experts * held_bytes)
        work = f"experts {chosen} of {experts}, {dim}x{width}"
        yield _kernel_row(work, count, size, 2 * count * chosen * 3 * dim * width, seconds, limits)


def decode_row(
    model: Transformer, *, batch: int, context: int, tokens: int, limits: Limits | None, repeats: int = 5
) -> dict[str, Any]:
    """Return how fast replies are drawn: tokens a second of all of them, by an engine.

    Args:
        model: any.
        batch: replies at once; they have one prompt, and go apart at their first token.
        context: tokens of the prompt, at least 1.
        tokens: of each reply that are timed, between two before them and the last, which ends it.
        limits: of this machine; None: not measured.
        repeats: of the whole, after a first one that does not count.
    Raises:
        EngineError: the model's context is too short.
    """
    length = context + WARM_STEPS + tokens + 1
    _check(model, length)
    engine = Engine(model, max_batch=batch, max_context_tokens=length + 1)
    samples = []
    for repeat in range(repeats + 1):
        # To their full length: what ends sooner has too few steps to time.
        params = SamplingParams(max_tokens=WARM_STEPS + tokens + 1, seed=repeat + 1, n=batch, ignore_eos=True)
        engine.add(_prompt(model.config, context, repeat), params)
        counts, begin_s, end_s, steps = 0, 0.0, 0.0, 0
        while engine.has_work:
            events = engine.step()
            steps += bool(events)
            if steps == WARM_STEPS and events:
                begin_s = time.perf_counter()
            elif WARM_STEPS < steps <= WARM_STEPS + tokens:
                counts, end_s = counts + len(events), time.perf_counter()
        samples.append(counts / (end_s - begin_s))
    del samples[0]  # of an engine whose memory was new
    row: dict[str, Any] = {"work": f"decode, batch {batch}, context {context}", "unit": "tokens/s"}
    row |= {"value": statistics.median(samples), "samples": samples}
    sizes = weight_bytes(model, batch)
    row["bytes_per_step"] = sizes
    row["gb_s"] = sizes * row["value"] / batch / 1e9
    if limits is not None:
        row["share_of_stream"] = row["gb_s"] / limits.stream_gb_s
    return row


def prefill_row(
    model: Transformer, *, tokens: int, limits: Limits | None, flops_per_token: float, repeats: int = 5
) -> dict[str, Any]:
    """Return how fast a prompt is read: its tokens over the time from when it comes until the reply's first token.

    Args:
        model: any.
        tokens: of the prompt.
        limits: of this machine; None: not measured.
        flops_per_token: multiplications and additions of a token, by `model.count`.
        repeats: of the whole, after a first one that does not count.
    Raises:
        EngineError: the model's context is too short.
    """
    _check(model, tokens + 1)
    engine = Engine(model, max_batch=1, max_context_tokens=tokens + 2)
    samples = []
    for repeat in range(repeats + 1):
        prompt = _prompt(model.config, tokens, repeat)
        begin_s = time.perf_counter()
        engine.add(prompt, SamplingParams(max_tokens=1, temperature=0.0))
        while engine.has_work:
            engine.step()
        samples.append(tokens / (time.perf_counter() - begin_s))
    del samples[0]  # of an engine whose memory was new
    row: dict[str, Any] = {"work": f"prefill of {tokens}", "unit": "tokens/s"}
    row |= {"value": statistics.median(samples), "samples": samples}
    row["gops"] = row["value"] * flops_per_token / 1e9
    if limits is not None:
        row["share_of_peak"] = row["gops"] / limits.peak_gops
    return row


def weight_bytes(model: Transformer, batch: int = 1) -> int:
    """Return the bytes of weights that a step reads: of experts those that `batch` tokens choose, if by chance."""
    config = model.config
    total = 0.0
    main = model.model.layers[: config.num_hidden_layers]
    for module in (part for block in (*main, model.model.norm, model.lm_head) for part in block.modules()):
        sizes = sum(tensor.nbytes for tensor in module.parameters(recurse=False))
        held = getattr(module, "packed", None)
        if held is not None:
            sizes += held.nbytes if isinstance(held, Packed) else sum(packed.nbytes for packed in held)
        if (stored := getattr(module, "stored", None)) is not None:
            sizes += stored.nbytes
        if isinstance(module, Experts):
            sizes *= chosen_share(config, batch)
        total += sizes
    return int(total)


def _kernel_row(
    work: str, rows: int, size: int, operations: int, seconds: list[float], limits: Limits
) -> dict[str, Any]:
    median_s = statistics.median(seconds)
    gb_s, gops = size / median_s / 1e9, operations / median_s / 1e9
    return {
        "work": f"{work}, {rows} rows",
        "rows": rows,
        "unit": "us",
        "value": median_s * 1e6,
        "samples": [second * 1e6 for second in seconds],
        "gb_s": gb_s,
        "share_of_stream": gb_s / limits.stream_gb_s,
        "gops": gops,
        "share_of_peak": gops / limits.peak_gops,
    }


def _copies(form: str, outputs: int, inputs: int) -> list[Packed | Stored]:
    one = _weight(form, outputs, inputs)
    return [one, *(_weight(form, outputs, inputs) for _ in range(LARGER_THAN_CACHES // one.nbytes))]


def _weight(form: str, outputs: int, inputs: int) -> Packed | Stored:
    """Return a weight of random numbers of a usual size."""
    if form in FORMS:
        packed = empty_packed(FORMS[form], outputs, inputs)
        _fill(packed)
        return packed
    return _stored(form, outputs, inputs)


def _stored(form: str, outputs: int, inputs: int) -> Stored:
    if form == "bf16":
        return Stored(torch.empty(outputs, inputs, dtype=torch.bfloat16).normal_())
    codes = torch.empty(outputs, inputs, dtype=torch.uint8).random_(0, 127)
    grid = -(-outputs // SCALED), -(-inputs // SCALED)
    return Stored(codes.view(torch.float8_e4m3fn), torch.full(grid, 1e-3))


def _product(x_TD: Tensor, weight: Packed | Stored) -> Tensor:
    return packed_linear(x_TD, weight) if isinstance(weight, Packed) else stored_linear(x_TD, weight)


def _mixture(form: str, dim: int, width: int, experts: int) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]:
    """Return what computes a layer's experts of random numbers, and the bytes that they take."""
    if form in FORMS:
        gate_up = empty_packed(FORMS[form], width, dim, experts, halves=2)
        down = empty_packed(FORMS[form], dim, width, experts)
        for packed in (gate_up, down):
            _fill(packed)
        return lambda x, w, c: packed_experts(x, w, c, gate_up, down), gate_up.nbytes + down.nbytes
    gates, ups = ([_stored(form, width, dim) for _ in range(experts)] for _ in range(2))
    held = StoredExperts(gates, ups, [_stored(form, dim, width) for _ in range(experts)])
    return lambda x, w, c: stored_experts(x, w, c, held), held.nbytes


def _fill(packed: Packed) -> None:
    packed.codes.random_(0, 256)
    packed.fill_scales(1e-3)


def _seconds(call: Callable[[], object], repeats: int) -> list[float]:
    call()
    seconds = []
    for _ in range(repeats):
        begin_s, calls = time.perf_counter(), 0
        while calls < 3 or time.perf_counter() - begin_s < 0.05:
            call()
            calls += 1
        seconds.append((time.perf_counter() - begin_s) / calls)
    return seconds


def _prompt(config: ModelConfig, tokens: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config.vocab_size, (tokens,), generator=generator).tolist()


def _check(model: Transformer, needed: int) -> None:
    most = model.config.max_position_embeddings
    if needed > most:
        raise EngineError(f"{needed} tokens are needed, and the model's context has {most}: ask for less")
