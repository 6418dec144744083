"""Limits: what this machine can do at most, measured: memory read as a stream, int8 multiplications in registers."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from leanseek.errors import KernelError
from leanseek.kernels import native

# Far more than the caches hold.
STREAM_BYTES = 512 << 20
PEAK_PIECES = 64


@dataclass(frozen=True)
class Limits:
    """What the machine did, with the threads that torch may use.

    Args:
        variant: instruction set of the kernels that measured.
        threads: that took part.
        stream_gb_s: 10^9 bytes read a second.
        peak_gops: 10^9 int8 multiplications and additions a second, each counted as one.
    """

    variant: str
    threads: int
    stream_gb_s: float
    peak_gops: float


def measure_limits(repeats: int = 5, stream_bytes: int = STREAM_BYTES) -> Limits:
    """Measure: each figure is the median of some repeats, in turn.

    Raises:
        KernelError: there are no native kernels.
    """
    found = native.native()
    if not found.variants:
        raise KernelError(f"limits are measured by native kernels: {found.reason}")
    variant = list(found.variants)[-1]
    data, out = torch.zeros(stream_bytes // 8, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    data.fill_(1)  # else every page would be the same one of zeros
    streams, peaks = [], []
    for _ in range(repeats + 1):  # the first is for waking up
        begin_s = time.perf_counter()
        native.call("stream", variant, data, data.nbytes, out)
        streams.append(data.nbytes / (time.perf_counter() - begin_s) / 1e9)
        begin_s = time.perf_counter()
        native.call("peak", variant, PEAK_PIECES, out)
        peaks.append(int(out[0]) / (time.perf_counter() - begin_s) / 1e9)
    return Limits(variant, torch.get_num_threads(), statistics.median(streams[1:]), statistics.median(peaks[1:]))
