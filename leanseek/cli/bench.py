"""leanseek bench: how fast kernels, decoding and reading prompts are on this machine, beside its limits."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from leanseek import variables
from leanseek.cli.columns import columns
from leanseek.cost.energy import EnergyMeter, describe_meter
from leanseek.cost.rates import load_rates
from leanseek.drawing import decode_speed, read_speed
from leanseek.errors import UsageError
from leanseek.log import say
from leanseek.run import model_folder

# Why nothing is planned.
ONLY_FP32 = "of fp32 weights alone, which leanseek plan --calibrate measures"
NOT_CALIBRATED = "nothing, as this machine has not been measured; run: leanseek plan --calibrate"
HEAD = ("work", "median", "", "least", "most", "GB/s", "of stream", "GOPS", "of peak", "J a token", "planned")


def bench(
    what: Literal["kernels", "decode", "prefill"],
    model: str,
    *,
    weights: Literal["fp32", "bf16", "fp8", "int8", "int4"] = "int4",
    random_weights: bool = False,
    batch: tuple[int, ...] = (1,),
    context: tuple[int, ...] = (1,),
    tokens: int = 32,
    repeats: int = 5,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Measure speed on this machine, beside the memory's stream rate and the peak of int8 multiplications.

    With fp32 weights, what leanseek plan expects stands beside it, where leanseek plan --calibrate has been run.

    Example: leanseek bench decode deepseek-v2-lite --random-weights --weights int4

    Args:
        what: kernels (products at the model's shapes), decode (tokens drawn a second), or prefill (tokens of a
            prompt read a second).
        model: A run folder, a model folder, or with --random-weights a preset.
        weights: What the weights are kept in; kernels takes all but fp32.
        random_weights: Take a shape alone, with random weights.
        batch: For decode, replies at once; for kernels, rows. May be given several times.
        context: For decode and prefill, tokens of the prompt. May be given several times.
        tokens: For decode, tokens of each reply.
        repeats: Of each figure, whose median is shown.
        threads: CPU threads; without it, LEANSEEK_THREADS, or all that this process may use.
        json: One line of JSON a row, with the samples.
    """
    if min(batch) < 1 or min(context) < 1 or tokens < 1 or repeats < 1 or (threads is not None and threads < 1):
        raise UsageError("--batch, --context, --tokens, --repeats and --threads are at least 1")
    if what == "kernels" and weights == "fp32":
        raise UsageError("--weights fp32 goes with decode and prefill; kernels are of bf16, fp8, int8 and int4 weights")
    from leanseek.model.config import ModelConfig, load_preset

    folder = None if random_weights else model_folder(Path(model))
    config = load_preset(model) if folder is None else ModelConfig.from_file(folder / "config.json")
    # Here, so that a wrong option or folder is told at once and --help does not wait for torch.
    import torch

    from leanseek.evals import speed
    from leanseek.kernels import native
    from leanseek.kernels.limits import measure_limits
    from leanseek.kernels.registry import notice
    from leanseek.kernels.threads import available_threads
    from leanseek.model.count import forward_flops_per_token

    torch.set_num_threads(threads or variables.threads() or available_threads())
    limits = None
    if line := notice():
        say(line)
    if native.native().variants:
        limits = measure_limits(repeats)
        facts = f"{limits.threads} threads, {limits.variant}: memory {limits.stream_gb_s:.1f} GB/s, "
        say(f"{facts}int8 {limits.peak_gops:,.0f} GOPS")
    elif what == "kernels":
        raise UsageError(f"there are no native kernels to measure: {native.native().reason}")
    found, meter, known = [], "", load_rates() if weights == "fp32" else None
    # What was calibrated is an engine with one thread, and one with all.
    rates = None if known is None else known.engine if torch.get_num_threads() == 1 else known.alone
    if what == "kernels":
        assert limits is not None
        rows = batch if batch != (1,) else (1, 4, 8, 32, 128)
        measured = speed.kernel_rows(config, weights, limits, rows=rows, repeats=repeats)
        while row := _with_energy(lambda: next(measured, {})):
            meter = str(row["meter"])
            found.append(_shown(row, json, weights))
    else:
        net = _model(folder, config, weights)
        for length in context if what == "decode" or context != (1,) else (512,):
            if what == "prefill":
                flops = forward_flops_per_token(config, length)
                reading = partial(speed.prefill_row, net, tokens=length, limits=limits, flops_per_token=flops)
                row = _with_energy(lambda reading=reading: reading(repeats=repeats))  # type: ignore[misc]
                if rates is not None:
                    row["planned"] = read_speed(config, rates, length)
                meter = str(row["meter"])
                found.append(_shown(row, json, weights))
                continue
            for count in batch:
                drawing = partial(speed.decode_row, net, batch=count, context=length, tokens=tokens, limits=limits)
                row = _with_energy(lambda drawing=drawing: drawing(repeats=repeats))  # type: ignore[misc]
                if rates is not None:
                    row["planned"] = decode_speed(config, rates, count, length, tokens)
                    if limits is not None:  # weights too large for caches are read from memory, step by step
                        most = limits.stream_gb_s * 1e9 * count / row["bytes_per_step"]
                        row["planned"] = min(row["planned"], most)
                meter = str(row["meter"])
                found.append(_shown(row, json, weights))
    if not json:
        print(columns([HEAD, *found], right=(1, 3, 4, 5, 6, 7, 8, 9, 10)))
        if meter:
            print(f"energy: {describe_meter(meter)}")
        if what != "kernels" and rates is None:
            print(f"planned: {NOT_CALIBRATED if weights == 'fp32' else ONLY_FP32}")


def _with_energy(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a row with what each token took, by the watts that were drawn meanwhile; an empty row as it is.

    Of a kernel, each row of its input is a token.
    """
    meter, start_s = EnergyMeter(), time.monotonic()
    meter.start()
    row = measure()
    watts = meter.read_joules() / (time.monotonic() - start_s)
    meter.stop()
    if not row:
        return row
    each_s = row["value"] * 1e-6 / row["rows"] if "rows" in row else 1 / row["value"]
    return {**row, "joules_per_token": watts * each_s, "watts": watts, "meter": meter.meter}


def _model(folder: Path | None, config: Any, weights: str) -> Any:
    """Return the model to measure."""
    from leanseek.checkpoint.directory import empty_model
    from leanseek.checkpoint.packed import FORMS, open_model, random_packed
    from leanseek.model.initialise import initialise

    if folder is not None:
        return open_model(folder, weights)
    if weights in FORMS:
        return random_packed(config, weights)
    if weights == "fp8":
        raise UsageError("--weights fp8 needs an FP8 folder; random weights are fp32, bf16, int8 or int4")
    return initialise(empty_model(config, dtype={"fp32": "float32", "bf16": "bfloat16"}[weights]), 0).eval()


def _shown(row: dict[str, Any], as_json: bool, weights: str) -> tuple[str, ...]:
    """Print a row as JSON, or return it as cells."""
    if as_json:
        print(json_format.dumps({**row, "weights": weights}), flush=True)
    cells = [f"{row['work']}, {weights}", f"{row['value']:,.4g}", row["unit"]]
    cells += [f"{value:,.4g}" for value in (min(row["samples"]), max(row["samples"]))]
    for rate, share in (("gb_s", "share_of_stream"), ("gops", "share_of_peak")):
        cells.append(f"{row[rate]:,.1f}" if rate in row else "")
        cells.append(f"{row[share]:.0%}" if share in row else "")
    cells.append(f"{row['joules_per_token']:,.3g}" if "joules_per_token" in row else "")
    cells.append(f"{row['planned']:,.4g}" if "planned" in row else "")
    return tuple(cells)
