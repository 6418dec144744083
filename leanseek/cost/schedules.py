"""Schedules: the names of pipeline schedules, and which stages their devices hold."""

from __future__ import annotations

from leanseek.errors import UsageError, nearest

SCHEDULES = ("1f1b", "interleaved2", "interleaved4", "interleaved8", "zb1p", "zbv", "dualpipe", "dualpipev")
# Schedules whose devices hold two stages: halves of one (ZBV, DualPipeV), or one for each direction (DualPipe).
CHUNKS = {"interleaved2": 2, "interleaved4": 4, "interleaved8": 8}
TWO_STAGES = ("zbv", "dualpipe", "dualpipev")
OVERLAPPING = ("dualpipe", "dualpipev")


def stages_of(schedule: str, devices: int) -> int:
    """Return how many stages a schedule cuts the layers into."""
    if schedule in CHUNKS:
        return CHUNKS[schedule] * devices
    return 2 * devices if schedule in ("zbv", "dualpipev") else devices


def held_stages(schedule: str, devices: int, device: int) -> tuple[int, ...]:
    """Return the stages whose weights a device holds."""
    if schedule in CHUNKS:
        return tuple(range(device, CHUNKS[schedule] * devices, devices))
    if schedule == "dualpipe":
        return (device, devices - 1 - device)
    if schedule in TWO_STAGES:
        return (device, 2 * devices - 1 - device)
    return (device,)


def fits(schedule: str, devices: int, micro_batches: int) -> str | None:
    """Return what keeps a schedule from running, in words, or None."""
    if schedule not in SCHEDULES:
        raise UsageError(f"schedule {schedule!r} is not known{nearest(schedule, SCHEDULES)}; have {names()}")
    if devices == 1:
        return None
    if schedule == "dualpipe" and (devices % 2 or micro_batches % 2 or micro_batches < 2 * devices):
        return f"dualpipe needs an even pipeline and an even number of at least {2 * devices} micro-batches"
    if schedule in CHUNKS and micro_batches % devices:
        return f"{schedule} needs a multiple of {devices} micro-batches"
    if schedule == "dualpipev" and micro_batches < 2 * devices:
        return f"dualpipev needs at least {2 * devices} micro-batches"
    return None


def names() -> str:
    """Return the schedules' names for a message."""
    return ", ".join(SCHEDULES)
