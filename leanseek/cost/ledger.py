"""Ledger: one sealed line for each piece of work, with what it took: tokens, FLOPs, time, energy, money, memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanseek.cost.carbon import Grid
from leanseek.cost.chain import Sealed, append_sealed, read_chain
from leanseek.cost.energy import EnergyMeter
from leanseek.errors import RunError

# Summed over rows; the rest of a row is merged in its own way.
SUMMED = ("tokens", "flops", "seconds", "joules", "usd")
# Summed too, where any row has them: not every machine and every stage can tell.
SUMMED_IF_KNOWN = (
    "device_seconds",
    "forward_flops",
    "backward_flops",
    "recompute_flops",
    "storage_read_bytes",
    "storage_written_bytes",
    "carbon_g",
)
# The same, part by part.
BY_PART, SECONDS_BY_PART = "flops_by_part", "seconds_by_part"
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
        devices: that work side by side, each with a process of its own.
        joules_elsewhere: what the other processes drew.
        forward_flops, backward_flops, recompute_flops: shares of `flops`, as far as whoever did the work told them.
        flops_by_part: part of the model -> its share of `flops`, likewise.
        seconds_by_part: part of the work -> how long it took, likewise.
    """

    stage: str
    tokens: int = 0
    flops: float = 0
    device_peak_memory_bytes: int = 0
    devices: int = 1
    joules_elsewhere: float = 0
    forward_flops: float = 0
    backward_flops: float = 0
    recompute_flops: float = 0
    flops_by_part: dict[str, float] = field(default_factory=dict)
    seconds_by_part: dict[str, float] = field(default_factory=dict)

    def add_flops(self, forward: float = 0, backward: float = 0, recompute: float = 0, part: str | None = None) -> None:
        """Add work to `flops` and to the shares that it belongs to.

        Args:
            forward: FLOPs of the forward pass.
            backward: of the backward pass.
            recompute: of a forward pass that is done again for the backward one.
            part: of the model, such as "experts"; None: it is not told.
        """
        self.flops += forward + backward + recompute
        self.forward_flops += forward
        self.backward_flops += backward
        self.recompute_flops += recompute
        if part is not None:
            self.flops_by_part[part] = self.flops_by_part.get(part, 0) + forward + backward + recompute

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds inside to a part of the work."""
        start_s = time.monotonic()
        try:
            yield
        finally:
            self.seconds_by_part[part] = self.seconds_by_part.get(part, 0) + time.monotonic() - start_s


class Ledger:
    """The account of a run: ledger.jsonl.

    Args:
        path: of the file; made with the first row.
        usd_per_hour: price of the machine.
        device: "cpu" or "cuda".
        meter: of energy; None: one for the device.
        grid: whose carbon is written into the rows; None: none is (`leanseek ledger --grid` works it out later).
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
        grid: Grid | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = Path(path)
        self.usd_per_hour, self.device = usd_per_hour, device
        self.meter = meter or EnergyMeter(device)
        self.grid = grid
        self._clock, self._now = clock, now
        self._open: str | None = None
        self._start_s = 0.0
        self._before: dict[str, Any] | None = None  # what earlier rows sum up to

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
        before = storage_bytes()
        self._before = self.totals()[ALL_STAGES]
        self._start_s = self._clock()
        self.meter.start()
        try:
            yield charge
        finally:
            seconds = self._clock() - self._start_s
            joules = self.meter.read_joules() + charge.joules_elsewhere
            self.meter.stop()
            self._open = None
            self._append(charge, seconds, joules, before)

    def so_far(self) -> tuple[float, float]:
        """Return the joules and the dollars of all rows and of what is being charged now."""
        before = self.totals()[ALL_STAGES] if self._open is None or self._before is None else self._before
        joules, usd = before["joules"], before["usd"]
        if self._open is None:
            return joules, usd
        return joules + self.meter.read_joules(), usd + (self._clock() - self._start_s) / 3600 * self.usd_per_hour

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, oldest first, without their seals; a line that a crash cut off is left out."""
        return self.check().rows

    def check(self) -> Sealed:
        """Read the file and say which lines a crash cut off, and which do not fit their seal."""
        return read_chain(self.path)

    def totals(self) -> dict[str, dict[str, Any]]:
        """Sum the rows per stage, and over all stages under the name "totals".

        Seconds, tokens, FLOPs, joules and money add up; of memory the largest counts; meters that differ are
        all named. `for part, values in ledger.totals().items(): run.update(part, values)` writes them down.
        """
        return sum_rows(self.rows())

    def _append(self, charge: Charge, seconds: float, joules: float, storage_before: tuple[int, int] | None) -> None:
        row: dict[str, Any] = {
            "time_s": round(self._now(), 3),
            "stage": charge.stage,
            "tokens": int(charge.tokens),
            "flops": charge.flops,
            "seconds": seconds,
            "device_seconds": seconds * charge.devices,
            "joules": joules,
            "meter": self.meter.meter,
            "usd": seconds / 3600 * self.usd_per_hour,
            "peak_memory_bytes": peak_memory_bytes(),
            "device_peak_memory_bytes": int(charge.device_peak_memory_bytes),
            "device": self.device,
        }
        for key in ("forward_flops", "backward_flops", "recompute_flops", BY_PART, SECONDS_BY_PART):
            if value := getattr(charge, key):
                row[key] = value
        storage_after = storage_bytes()
        if storage_before is not None and storage_after is not None:
            row["storage_read_bytes"] = storage_after[0] - storage_before[0]
            row["storage_written_bytes"] = storage_after[1] - storage_before[1]
        if self.grid is not None:
            row["carbon_g"], row["grid"] = self.grid.grams(joules), self.grid.name
        append_sealed(self.path, row)


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


def storage_bytes(counters: Path = Path("/proc/self/io")) -> tuple[int, int] | None:
    """Return the bytes that this process had read from disks and written to them; None where nobody counts.

    What the system had in memory already is not read again, and not counted.

    Args:
        counters: where Linux shows them.
    """
    try:
        lines = dict(line.split(": ") for line in counters.read_text(encoding="ascii").splitlines())
        return int(lines["read_bytes"]), int(lines["write_bytes"])
    except (OSError, ValueError, KeyError):
        return None


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {key: sum(row.get(key) or 0 for row in rows) for key in SUMMED}
    for key in SUMMED_IF_KNOWN:
        if any(row.get(key) is not None for row in rows):
            total[key] = sum(row.get(key) or 0 for row in rows)
    for key in (BY_PART, SECONDS_BY_PART):
        parts: dict[str, float] = {}
        for row in rows:
            for part, amount in (row.get(key) or {}).items():
                parts[part] = parts.get(part, 0) + amount
        if parts:
            total[key] = parts
    for key in LARGEST:
        total[key] = max((row.get(key) or 0 for row in rows), default=0)
    total["meter"] = ", ".join(dict.fromkeys(str(row["meter"]) for row in rows if row.get("meter")))
    return total
