"""Spikes: steps whose gradient is far out of the ordinary, which are skipped and logged rather than learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from leanseek.errors import RunError

# Steps before any is judged, how long the running mean remembers, and how many skipped in a row end the stage.
LEAST_SEEN = 20
MEMORY = 0.98
MOST_IN_A_ROW = 10


class Spikes:
    """Judges each step's gradient norm by the running mean of those before it.

    Args:
        factor: how many times the mean is too much.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.mean, self.seen, self.in_a_row = 0.0, 0, 0

    def is_one(self, norm: float) -> bool:
        """Whether a step with this gradient norm is to be skipped; the norm of one that is not enters the mean.

        Raises:
            RunError: it would be the last of `MOST_IN_A_ROW` in a row: the data or the learning rate are at fault.
        """
        usual = self.seen < LEAST_SEEN or norm <= self.factor * self.mean
        if math.isfinite(norm) and usual:
            # The first steps' plain mean, so that it does not begin at 0.
            memory = min(MEMORY, self.seen / (self.seen + 1))
            self.mean = memory * self.mean + (1 - memory) * norm
            self.seen, self.in_a_row = self.seen + 1, 0
            return False
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise RunError(
                f"{MOST_IN_A_ROW} steps in a row had to be skipped: the newest gradient's norm is {norm:.3g}, their "
                f"running mean {self.mean:.3g}; look at the data there, or go on from the last checkpoint with a "
                "lower learning rate"
            )
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact continuation needs."""
        return {"mean": self.mean, "seen": self.seen, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self.mean, self.seen, self.in_a_row = float(state["mean"]), int(state["seen"]), int(state["in_a_row"])
