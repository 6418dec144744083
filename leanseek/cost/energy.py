"""EnergyMeter: joules of this machine, measured by RAPL, NVML or the battery where they can be read, else estimated."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from leanseek.cost.hardware import Hardware, all_hardware, gpu_named, hardware, this_cpu

POWERCAP, BATTERIES = Path("/sys/class/powercap"), Path("/sys/class/power_supply")
# A RAPL counter of 262 kJ comes round after 5 minutes at 900 W; it is read far more often than that.
RAPL_EVERY_S = 30.0
# A battery says its power anew every few seconds at best.
BATTERY_EVERY_S = 5.0


class EnergyMeter:
    """Measures or estimates what this machine draws between `start` and `stop`.

    On a CPU it is the processor's energy; on a GPU, that of the GPU and of the processor beside it, and the
    label names both. RAPL counts the whole processor, other processes too. A laptop that runs on its battery
    counts what leaves it: screen, disk and all. The estimate takes a stated number of watts for every core that
    this process keeps busy, and an idle share for its other cores.

    Args:
        device: "cpu" or "cuda".
        row: a row of hardware.toml for the estimates; None: found out.
        gpu_name: the driver's name of the GPU, to find its row where NVML cannot be read.
        gpu_uuid: which GPU NVML shall read; None: the first.
        beside: whether another process of this machine counts what all of its processes draw together: then this one
            counts its GPU, and where nothing measures the processor, its own busy seconds.
        powercap: where Linux shows the RAPL counters.
        batteries: where it shows batteries.
        nvml: the pynvml module; None: imported if it is there.
        clock: seconds.
        cpu_clock: CPU-seconds of this process.

    Raises:
        ConfigError: there is no such row.
    """

    def __init__(
        self,
        device: str = "cpu",
        row: str | None = None,
        *,
        gpu_name: str | None = None,
        gpu_uuid: str | None = None,
        beside: bool = False,
        powercap: Path = POWERCAP,
        batteries: Path = BATTERIES,
        nvml: Any = None,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        given = hardware(row) if row is not None else None
        cpu = given if given is not None and given.kind == "cpu" else this_cpu()
        self._parts: list[Part] = []
        if device == "cuda":
            gpu = given if given is not None and given.kind == "gpu" else gpu_named(gpu_name or "")
            self._parts.append(Nvml.open(nvml, gpu_uuid) or GpuEstimate(gpu, clock))
        measured = Rapl.open(powercap) or Battery.open(batteries, clock)
        if measured is not None and not beside:
            self._parts.append(measured)
        elif measured is None:
            self._parts.append(CpuEstimate(replace(cpu, idle_watts=0.0) if beside else cpu, clock, cpu_clock))

    @property
    def meter(self) -> str:
        """How the joules were got: "measured:rapl", ":battery" or ":nvml", or "estimated:<row>"; two joined by "+"."""
        return "+".join(part.label for part in self._parts)

    def start(self) -> None:
        """Begin to count from nought."""
        for part in self._parts:
            part.start()

    def read_joules(self) -> float:
        """Return the joules since `start`."""
        return sum(part.read_joules() for part in self._parts)

    def stop(self) -> None:
        """Stop counting; the meter may be started again."""
        for part in self._parts:
            part.stop()


class Part(Protocol):
    """One source of joules."""

    label: str

    def start(self) -> None:
        """Begin to count from nought."""

    def read_joules(self) -> float:
        """Return the joules since `start`."""

    def stop(self) -> None:
        """Stop counting."""


class Rapl:
    """The processor's own counters: packages, and the memory that hangs on them.

    Args:
        zones: their folders, each with energy_uj and max_energy_range_uj.
    """

    label = "measured:rapl"

    def __init__(self, zones: list[Path]) -> None:
        self._zones = zones
        self._ranges = [_read_number(zone / "max_energy_range_uj") for zone in zones]
        self._last: list[int] = []
        self._counted_uj = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @classmethod
    def open(cls, powercap: Path) -> Rapl | None:
        """Return the counters, or None where there are none or they may not be read (most need root)."""
        zones = []
        # Only intel-rapl: AMD is under that name too, and intel-rapl-mmio shows the same packages again.
        for zone in sorted(powercap.glob("intel-rapl:*")):
            try:
                name = (zone / "name").read_text(encoding="utf-8").strip()
                # psys holds the packages once more; core and uncore are parts of a package.
                if name.startswith("package") or name == "dram":
                    # A counter that stands at 0 is a virtual machine's dummy.
                    if _read_number(zone / "energy_uj") == 0:
                        return None
                    _read_number(zone / "max_energy_range_uj")
                    zones.append(zone)
            except (OSError, ValueError):
                return None
        return cls(zones) if zones else None

    def start(self) -> None:
        """Begin to count, and keep reading so that no turn of a counter is missed."""
        self.stop()
        self._last, self._counted_uj = [_read_number(zone / "energy_uj") for zone in self._zones], 0
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, args=(self._stopped,), name="rapl", daemon=True).start()

    def read_joules(self) -> float:
        """Return the joules since `start`."""
        with self._lock:
            for index, zone in enumerate(self._zones):
                now = _read_number(zone / "energy_uj")
                step = now - self._last[index]
                self._counted_uj += step if step >= 0 else step + self._ranges[index]
                self._last[index] = now
            return self._counted_uj / 1e6

    def stop(self) -> None:
        """End the reading thread."""
        self._stopped.set()

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(RAPL_EVERY_S):
            self.read_joules()


class Battery:
    """What leaves a laptop's battery: its power, summed over time.

    Args:
        folder: of the battery: power_now in microwatts, or current_now and voltage_now in their millionths.
        clock: seconds.
    """

    label = "measured:battery"

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock
        self._joules = self._last_s = self._last_w = 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    @classmethod
    def open(cls, batteries: Path, clock: Callable[[], float]) -> Battery | None:
        """Return the battery that the machine runs on, or None: it has none, or runs on the mains."""
        for folder in sorted(batteries.glob("BAT*")):
            try:
                found = cls(folder, clock)
                if (folder / "status").read_text(encoding="ascii").strip() == "Discharging" and found._watts() > 0:
                    return found
            except (OSError, ValueError):
                continue
        return None

    def start(self) -> None:
        """Begin to count, and keep reading: power changes."""
        self.stop()
        self._joules, self._last_s, self._last_w = 0.0, self._clock(), self._watts()
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, args=(self._stopped,), name="battery", daemon=True).start()

    def read_joules(self) -> float:
        """Return the joules since `start`; plugged in meanwhile, the machine counts on with its last power."""
        with self._lock:
            now_s = self._clock()
            try:
                discharging = (self._folder / "status").read_text(encoding="ascii").strip() == "Discharging"
                watts = self._watts() if discharging else self._last_w
            except (OSError, ValueError):
                watts = self._last_w
            self._joules += (now_s - self._last_s) * (self._last_w + watts) / 2
            self._last_s, self._last_w = now_s, watts
            return self._joules

    def stop(self) -> None:
        """End the reading thread."""
        self._stopped.set()

    def _watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(BATTERY_EVERY_S):
            self.read_joules()

    def _watts(self) -> float:
        if (self._folder / "power_now").is_file():
            return abs(_read_number(self._folder / "power_now")) / 1e6
        current, voltage = (_read_number(self._folder / f"{name}_now") for name in ("current", "voltage"))
        return abs(current) * voltage / 1e12


class Nvml:
    """The GPU's own energy counter.

    Args:
        nvml: the pynvml module, initialised.
        handle: of the GPU.
    """

    label = "measured:nvml"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._start_mj = 0

    @classmethod
    def open(cls, nvml: Any, uuid: str | None) -> Nvml | None:
        """Return the counter, or None where NVML is not installed or the GPU (older than Volta) has none."""
        try:
            nvml = nvml or importlib.import_module("pynvml")
        except ImportError:
            return None
        try:
            nvml.nvmlInit()
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else nvml.nvmlDeviceGetHandleByIndex(0)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:
            return None
        return cls(nvml, handle)

    def start(self) -> None:
        """Begin to count from nought."""
        self._start_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)

    def read_joules(self) -> float:
        """Return the joules since `start`."""
        now_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return float(now_mj - self._start_mj) / 1000

    def stop(self) -> None:
        """Nothing to end."""


class CpuEstimate:
    """Stated watts per busy core times CPU-seconds, and the idle share of the cores that this process may use.

    Args:
        row: a core's figures.
        clock: seconds.
        cpu_clock: CPU-seconds of this process.
    """

    def __init__(self, row: Hardware, clock: Callable[[], float], cpu_clock: Callable[[], float]) -> None:
        self.label = f"estimated:{row.name}"
        self._row, self._clock, self._cpu_clock = row, clock, cpu_clock
        self._cores = usable_cores()
        self._start_s = self._start_cpu_s = 0.0

    def start(self) -> None:
        """Begin to count from nought."""
        self._start_s, self._start_cpu_s = self._clock(), self._cpu_clock()

    def read_joules(self) -> float:
        """Return the joules since `start`."""
        busy_s = self._cpu_clock() - self._start_cpu_s
        idle_s = max(self._cores * (self._clock() - self._start_s) - busy_s, 0.0)
        return busy_s * self._row.watts + idle_s * self._row.idle_watts

    def stop(self) -> None:
        """Nothing to end."""


class GpuEstimate:
    """A GPU's power limit times seconds: what it draws at most.

    Args:
        row: the GPU's figures.
        clock: seconds.
    """

    def __init__(self, row: Hardware, clock: Callable[[], float]) -> None:
        self.label = f"estimated:{row.name}"
        self._watts, self._clock, self._start_s = row.watts, clock, 0.0

    def start(self) -> None:
        """Begin to count from nought."""
        self._start_s = self._clock()

    def read_joules(self) -> float:
        """Return the joules since `start`."""
        return self._watts * (self._clock() - self._start_s)

    def stop(self) -> None:
        """Nothing to end."""


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_meter(meter: str) -> str:
    """Return in words what a row's `meter` says, such as "measured:rapl" or "estimated:virtual-cpu"."""
    return "; ".join("; ".join(_describe_part(part) for part in one.split("+")) for one in meter.split(", "))


def _describe_part(label: str) -> str:
    kind, _, name = label.partition(":")
    if label == Rapl.label:
        return "measured by the processor's own counters (RAPL), other processes included"
    if label == Battery.label:
        return "measured as what leaves the battery, the whole machine and its screen included"
    if label == Nvml.label:
        return "measured by the GPU's own counter (NVML)"
    row = all_hardware().get(name)
    if kind != "estimated" or row is None:
        return label or "not known"
    if row.kind == "gpu":
        return f"estimated as {row.watts:g} W, the power limit of {row.title}"
    idle = f" and {row.idle_watts:g} W for an idle one" if row.idle_watts else ""
    return f"estimated as {row.watts:g} W for a busy core{idle} ({row.title})"


def _read_number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
