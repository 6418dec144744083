"""Ledger: one line for each piece of work, with what it took: tokens, FLOPs, time, energy, money, memory."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanseek.cost.energy import EnergyMeter
from leanseek.errors import RunError
from leanseek.files import append_line
from leanseek.log import RunLog, values_without_nan

# Summed over rows; the rest of a row is merged in its own way.
SUMMED = ("tokens", "flops", "seconds", "joules", "usd")
LARGEST = ("peak_memory_bytes", "device_peak_memory_bytes")
ALL_STAGES = "totals"


@dataclass
class Charge:
    """What the work under way has done so far; whoever does it adds to these.

    Args:
        stage: that is charged.
        tokens: read or sampled.
        flops: by formula (`model.count`).
        device_peak_memory_bytes: largest memory in use on the GPU; 0 where there is none.
    """

    stage: str
    tokens: int = 0
    flops: float = 0
    device_peak_memory_bytes: int = 0


class Ledger:
    """The account of a run: ledger.jsonl.

    Args:
        path: of the file; made with the first row.
        usd_per_hour: price of the machine.
        device: "cpu" or "cuda".
        meter: of energy; None: one for the device.
        clock: seconds, never going back.
        now: seconds since 1970.
    """

    def __init__(
        self,
        path: str | Path,
        usd_per_hour: float,
        device: str = "cpu",
        *,
        meter: EnergyMeter | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.usd_per_hour, self.device = usd_per_hour, device
        self.meter = meter or EnergyMeter(device)
        self._clock, self._now = clock, now
        self._open: str | None = None

    @contextmanager
    def charge(self, stage: str) -> Iterator[Charge]:
        """Charge what is done inside to a stage: a row is written on leaving, however it is left.

        Only a process that is killed outright leaves no row; charge long work in pieces (to each checkpoint).

        Raises:
            RunError: something is being charged already: seconds would count twice.
        """
        if self._open is not None:
            raise RunError(f"{stage} cannot be charged while {self._open} is: its seconds would count twice")
        charge, self._open = Charge(stage), stage
        forget_peak_memory()
        start_s = self._clock()
        self.meter.start()
        try:
            yield charge
        finally:
            seconds = self._clock() - start_s
            joules = self.meter.read_joules()
            self.meter.stop()
            self._open = None
            self._append(charge, seconds, joules)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, oldest first; a line that a crash cut off is left out."""
        return RunLog(self.path).read()

    def totals(self) -> dict[str, dict[str, Any]]:
        """Sum the rows per stage, and over all stages under the name "totals".

        Seconds, tokens, FLOPs, joules and money add up; of memory the largest counts; meters that differ are
        all named. `for part, values in ledger.totals().items(): run.update(part, values)` writes them down.
        """
        return sum_rows(self.rows())

    def _append(self, charge: Charge, seconds: float, joules: float) -> None:
        row = {
            "time_s": round(self._now(), 3),
            "stage": charge.stage,
            "tokens": int(charge.tokens),
            "flops": charge.flops,
            "seconds": seconds,
            "joules": joules,
            "meter": self.meter.meter,
            "usd": seconds / 3600 * self.usd_per_hour,
            "peak_memory_bytes": peak_memory_bytes(),
            "device_peak_memory_bytes": int(charge.device_peak_memory_bytes),
            "device": self.device,
        }
        append_line(self.path, json.dumps(values_without_nan(row), ensure_ascii=False))


def sum_rows(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Sum ledger rows as `Ledger.totals` does; {"totals": zeros} without rows."""
    stages = dict.fromkeys(str(row.get("stage")) for row in rows)
    totals = {stage: _sum([row for row in rows if str(row.get("stage")) == stage]) for stage in stages}
    return {**totals, ALL_STAGES: _sum(rows)}


def peak_memory_bytes() -> int:
    """Return the largest memory that this process held, since `forget_peak_memory` where that is possible."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_memory() -> None:
    """Let the peak begin anew, so that each stage shows its own; where the kernel refuses, it is the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {key: sum(row.get(key) or 0 for row in rows) for key in SUMMED}
    for key in LARGEST:
        total[key] = max((row.get(key) or 0 for row in rows), default=0)
    total["meter"] = ", ".join(dict.fromkeys(str(row["meter"]) for row in rows if row.get("meter")))
    return total
