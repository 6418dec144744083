"""Spending: what the work under way has taken so far, as a line for the person who waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from leanseek.cost.calibration import load_this
from leanseek.cost.energy import usable_cores
from leanseek.cost.hardware import gpu_named, hardware, this_cpu
from leanseek.cost.ledger import Charge, Ledger
from leanseek.cost.machines import THIS
from leanseek.units import format_joules, format_percent, format_usd

# Seconds between two looks at the meter.
EVERY_S = 1.0


def peak_flops(count: int, dtype: str, named: str | None = None, gpu_name: str | None = None) -> float:
    """Return the matrix products a second that some cores or GPUs reach at most.

    Args:
        count: of cores, or of GPUs.
        dtype: "float32" or "bfloat16".
        named: a row of hardware.toml; None: this machine's, as `leanseek plan --calibrate` measured it, if it did.
        gpu_name: the driver's name of the GPU; None: it is cores.
    """
    if named is not None:
        row = hardware(named)
    else:
        row = gpu_named(gpu_name) if gpu_name is not None else load_this() or this_cpu()
    if row.name == THIS and row.kind == "cpu":  # measured on all cores together
        return count / usable_cores() * row.peak_flops("bf16" if dtype == "bfloat16" else "fp32")
    return count * row.peak_flops("bf16" if dtype == "bfloat16" else "fp32")


class Spending:
    """Utilisation and energy a token since the first look; energy and money of the whole run up to now.

    Args:
        ledger: of the run.
        charge: the work under way.
        peak: FLOPs a second that the machine reaches at most.
        clock: seconds.
    """

    def __init__(
        self, ledger: Ledger, charge: Charge, peak: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger, self._charge, self._peak, self._clock = ledger, charge, peak, clock
        self._first: tuple[float, float, int, float] | None = None
        self._told_s, self._text = float("-inf"), ""

    def __call__(self) -> str:
        """Return the line, such as "MFU 41.0%, 0.0003 J a token, 1.2 kJ, $0.0021"; it changes once a second at most."""
        now_s, flops = self._clock(), self._charge.flops - self._charge.recompute_flops
        if self._first is None:
            self._first = (now_s, flops, self._charge.tokens, self._ledger.so_far()[0])
        if now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            first_s, first_flops, first_tokens, first_joules = self._first
            rate = (flops - first_flops) / (now_s - first_s) if now_s > first_s else 0.0
            joules, usd = self._ledger.so_far()
            parts = [f"MFU {format_percent(rate / self._peak)}"] if rate else []
            if tokens := self._charge.tokens - first_tokens:
                parts.append(f"{format_joules((joules - first_joules) / tokens)} a token")
            self._text = ", ".join([*parts, format_joules(joules), format_usd(usd)])
        return self._text
