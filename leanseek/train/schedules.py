"""Schedules: V3's learning rate, growing batch, balance rate and MTP weight, each a function of the step alone."""

from __future__ import annotations

import math

from leanseek.sections.training import TrainSettings


def lr_factor(step: int, steps: int, settings: TrainSettings) -> float:
    """Return what the peak learning rate is multiplied by at a step.

    Args:
        step: counted from 0.
        steps: steps of the whole stage.
        settings: warm-up share, decay share, and the shares of the peak that are left at the end. Of the
            decay share the last tenth is the constant tail, about V3's proportion (0.5T of 4.8T tokens); its last
            third has a rate of its own, as in V3, where `last_lr_fraction` is given.
    Returns:
        In (0, 1].
    Source: DeepSeek-V3 report section 4.2.
    """
    warmup = max(1, round(steps * settings.warmup_fraction))
    if step < warmup:
        return (step + 1) / warmup
    decay = steps * settings.decay_fraction
    start, end = steps - decay, steps - decay / 10
    if step <= start or decay == 0:
        return 1.0
    if settings.last_lr_fraction is not None and step >= steps - decay / 30:
        return settings.last_lr_fraction
    progress = min(1.0, (step - start) / (end - start))
    low = settings.final_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def batch_sequences(step: int, steps: int, settings: TrainSettings) -> int:
    """Return how many sequences a step's batch has: `ramp_from` at first, then linearly more up to all.

    Args:
        step: counted from 0.
        steps: steps of the whole stage.
        settings: `batch_sequences`, `ramp_from` and `ramp_fraction`.
    Source: DeepSeek-V3 report section 4.2 (3,072 to 15,360 sequences over the first 469B tokens).
    """
    first, full = settings.ramp_from, settings.batch_sequences
    ramp = steps * settings.ramp_fraction
    return full if first is None or step >= ramp else first + int((full - first) * step / ramp)


def sequences_before(step: int, steps: int, settings: TrainSettings) -> int:
    """Return how many sequences the steps before a step have read: the exact position in the data."""
    if settings.ramp_from is None:
        return step * settings.batch_sequences
    growing = min(step, math.ceil(steps * settings.ramp_fraction))
    grown = sum(batch_sequences(i, steps, settings) for i in range(growing))
    return grown + (step - growing) * settings.batch_sequences


def balance_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Return gamma, the step of the router's bias: `balance_rate`, and 0 after `balance_until`.

    Source: DeepSeek-V3 report section 4.2 (0.001 for 14.3T tokens, 0 for the last 0.5T).
    """
    return settings.balance_rate if step < steps * settings.balance_until else 0.0


def mtp_weight(step: int, steps: int, settings: TrainSettings) -> float:
    """Return lambda, the weight of the MTP loss: `mtp_weight`, and `late_mtp_weight` after `late_mtp_from`.

    Source: DeepSeek-V3 report section 4.2 (0.3 for 10T tokens, 0.1 for the other 4.8T).
    """
    late = settings.late_mtp_weight
    return settings.mtp_weight if late is None or step < steps * settings.late_mtp_from else late
