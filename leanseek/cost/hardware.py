"""Hardware: the rows of hardware.toml, and which of them this machine is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from leanseek.errors import ConfigError, nearest

CPU_INFORMATION = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Hardware:
    """One machine's figures; of a GPU for one GPU, of a CPU for one core.

    Args:
        name: of the row.
        title: in words.
        kind: "cpu" or "gpu".
        bf16_flops: dense matrix products a second in bfloat16.
        memory_bytes: of the device; 0: whatever the machine has.
        memory_bytes_per_s: peak rate of reading.
        watts: drawn when busy.
        sources: figure -> where it is from, and when.
        idle_watts: drawn when idle.
        usd_per_hour: rent; None: the recipe says.
        match: what the driver's name of the device contains; "" for CPUs.
        fp8_flops, fp32_flops: as bf16_flops, in other types; 0: the device has no such products, or none worth it.
        units: multiprocessors that a matrix product's tiles are shared among; 0: it is not cut into tiles.
        per_node: devices that the fast link joins.
        link_bytes_per_s: fast link, one way; 0: none.
        network_bytes_per_s: network card of each device, one way; 0: none.
        measured: the rates were reached on the machine itself, not stated by its maker.
    """

    name: str
    title: str
    kind: Literal["cpu", "gpu"]
    bf16_flops: float
    memory_bytes: float
    memory_bytes_per_s: float
    watts: float
    sources: Mapping[str, str]
    idle_watts: float = 0.0
    usd_per_hour: float | None = None
    match: str = ""
    fp8_flops: float = 0.0
    fp32_flops: float = 0.0
    units: int = 0
    per_node: int = 1
    link_bytes_per_s: float = 0.0
    network_bytes_per_s: float = 0.0
    measured: bool = False

    def peak_flops(self, precision: str) -> float:
        """Return the matrix products a second in a precision: "fp8" where there is none falls back to bf16.

        Args:
            precision: "fp8", "bf16" or "fp32".
        """
        if precision == "fp32":
            return self.fp32_flops or self.bf16_flops
        return (self.fp8_flops or self.bf16_flops) if precision == "fp8" else self.bf16_flops


def hardware(name: str) -> Hardware:
    """Return a row of hardware.toml.

    Raises:
        ConfigError: there is no such row.
    """
    rows = all_hardware()
    if name not in rows:
        raise ConfigError(f"hardware {name!r} is not known{nearest(name, rows)}; have {', '.join(rows)}")
    return rows[name]


@cache
def all_hardware() -> Mapping[str, Hardware]:
    """Return every row by name."""
    text = (resources.files("leanseek.cost") / "hardware.toml").read_text(encoding="utf-8")
    return {name: Hardware(name=name, **values) for name, values in tomllib.loads(text).items()}


def this_cpu(information: Path = CPU_INFORMATION) -> Hardware:
    """Return the row for this machine's cores: virtual ones, or a laptop's.

    Args:
        information: what the kernel says of the processor.
    """
    try:
        text = information.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return hardware("virtual-cpu" if "hypervisor" in flags.split() else "laptop-cpu")


def gpu_named(device_name: str) -> Hardware:
    """Return the row of a GPU by the driver's name of it, such as "NVIDIA H100 80GB HBM3".

    A GPU that is not in the table is taken for the hungriest that is, so that its energy is not understated.
    """
    rows = [row for row in all_hardware().values() if row.kind == "gpu"]
    fitting = [row for row in rows if row.match in device_name]
    return fitting[0] if fitting else max(rows, key=lambda row: row.watts)
