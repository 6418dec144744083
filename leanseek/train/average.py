"""Average: the mean of the weights along a stage, which validation sees and checkpoints hold where one is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from leanseek.sections.training import TrainSettings


def share_of_newest(step: int, steps: int, settings: TrainSettings) -> float:
    """Return how much of the mean the newest weights make up.

    Args:
        step: steps done, from 1.
        steps: of the whole stage.
        settings: with `ema` the share is 1 - ema, and more in the first steps, whose weights are soon out of date
            (as TensorFlow's moving averages have it: 1 - (1 + t) / (10 + t)). With `average_from` all weights after
            that share of the steps count alike.
    """
    if settings.ema is not None:
        return 1 - min(settings.ema, (1 + step) / (10 + step))
    first = round(steps * (settings.average_from or 0.0))
    return 1 / max(step - first, 1)


class Average:
    """A mean in fp32 beside the weights.

    Args:
        weights: by name; the very tensors that training changes, router biases too.
        settings: with `ema` or `average_from`.
    """

    def __init__(self, weights: Mapping[str, Tensor], settings: TrainSettings) -> None:
        self.weights, self.settings = dict(weights), settings
        self.mean = {name: one.float().clone() for name, one in self.weights.items()}
        self._aside: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Take in the weights after `step` of `steps` steps."""
        share = share_of_newest(step, steps, self.settings)
        torch._foreach_lerp_(list(self.mean.values()), [one.float() for one in self.weights.values()], share)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the mean in the weights' place while the block lasts."""
        self._aside = {name: one.clone() for name, one in self.weights.items()}
        self.settle()
        try:
            yield
        finally:
            _copy(self._aside, self.weights)
            self._aside = None

    def settle(self) -> None:
        """Put the mean in the weights' place for good."""
        _copy(self.mean, self.weights)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the mean and the weights that training goes on from, also while the mean is shown."""
        return {"mean": self.mean, "weights": self.weights if self._aside is None else self._aside}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take over a state that `state_dict` gave, weights too."""
        _copy(state["mean"], self.mean)
        _copy(state["weights"], self.weights)


@torch.no_grad()
def _copy(given: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, one in into.items():
        one.copy_(given[name])
