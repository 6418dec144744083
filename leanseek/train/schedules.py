"""Learning-rate schedules: V3's warm-up, flat part, cosine decay and constant tail."""

from __future__ import annotations

import math

from leanseek.settings import TrainSettings


def lr_factor(step: int, steps: int, settings: TrainSettings) -> float:
    """Return what the peak learning rate is multiplied by at a step.

    Args:
        step: counted from 0.
        steps: steps of the whole stage.
        settings: warm-up share, decay share, and the share of the peak that is left at the end. Of the
            decay share the last tenth is the constant tail, about V3's proportion (0.5T of 4.8T tokens).
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
    progress = min(1.0, (step - start) / (end - start))
    low = settings.final_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
