"""Machines: how many of which hardware, and at what price, read from text such as "2048xh800" and "$2/h"."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from leanseek.cost.hardware import Hardware, all_hardware, hardware
from leanseek.errors import UsageError, nearest
from leanseek.units import parse_usd

# The row of this machine, measured by `leanseek plan --calibrate`.
THIS = "this"


@dataclass(frozen=True)
class Machines:
    """Devices of one kind. A processor's cores are one device together: they share its memory.

    Args:
        device: figures of one device.
        count: of devices that work in parallel.
        asked: what was asked for, in words.
        usd_per_device_hour: price; None: not known.
        units: GPUs or cores that are paid for and draw power.
    """

    device: Hardware
    count: int
    asked: str
    usd_per_device_hour: float | None
    units: int

    @property
    def watts(self) -> float:
        """What all of them draw when busy."""
        return self.device.watts * self.count


def parse_machines(text: str, price: str | None = None, this: Hardware | None = None) -> Machines:
    """Read "2048xh800", "h800" or "2xlaptop-cpu"; a processor's number is of cores.

    Args:
        text: what is asked for.
        price: of one GPU (of one core) and hour, as "$2/h"; None: the hardware table's.
        this: the row that "this" means; None: this machine has not been measured.
    Raises:
        UsageError: it cannot be read, or there is no such hardware.
    """
    match = re.fullmatch(r"\s*(?:([0-9][0-9_,]*)\s*[xX*]\s*)?([A-Za-z][A-Za-z0-9.-]*)\s*", text)
    if match is None:
        raise UsageError(f"{text!r} is not a number of machines; write it as 2048xh800, h100 or 2xvirtual-cpu")
    count, name = int((match[1] or "1").replace(",", "").replace("_", "")), match[2].lower()
    if count < 1:
        raise UsageError(f"{text!r}: at least one device is needed")
    if name == THIS:
        if this is None:
            raise UsageError("this machine has not been measured yet; run: leanseek plan --calibrate")
        row = this
    elif name not in all_hardware():
        raise UsageError(
            f"hardware {name!r} is not known{nearest(name, all_hardware())}; have {', '.join(all_hardware())}, and "
            "this (measured by leanseek plan --calibrate)"
        )
    else:
        row = hardware(name)
    usd = row.usd_per_hour if price is None else parse_price(price)
    if row.kind == "cpu":
        whole = replace(
            row,
            bf16_flops=row.bf16_flops * count,
            fp32_flops=row.fp32_flops * count,
            memory_bytes_per_s=row.memory_bytes_per_s * count,
            watts=row.watts * count,
            idle_watts=row.idle_watts * count,
        )
        return Machines(whole, 1, f"{count} x {row.title}", None if usd is None else usd * count, count)
    return Machines(row, count, f"{count:,} x {row.title}", usd, count)


def parse_price(text: str) -> float:
    """Read a price for an hour: "$2/h", "2", "0.05 USD/hour".

    Raises:
        UsageError: it is none.
    """
    amount = re.sub(r"\s*(/|per)\s*(h|hour|gpu-hour)\s*$", "", text.strip(), flags=re.IGNORECASE)
    try:
        return parse_usd(amount)
    except UsageError:
        raise UsageError(f"{text!r} is not a price for an hour; write it as $2/h or 0.05") from None
