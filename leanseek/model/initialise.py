"""Weight initialisation: normal with one standard deviation, norms at one, biases at zero."""

from __future__ import annotations

from collections.abc import Callable

import torch

from leanseek.model.transformer import Transformer


@torch.no_grad()
def initialise(model: Transformer, seed: int, wanted: Callable[[str], bool] = lambda name: True) -> Transformer:
    """Fill a model's weights from a seed; the same seed gives the same weights on every device.

    Args:
        model: filled in place.
        seed: of the generator.
        wanted: whether a parameter is filled, by its name; what others are filled with does not depend on it.
    Returns:
        `model`.
    Source: DeepSeek-V3 report section 4.2 (one standard deviation for all); `initializer_range` sets it.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") and wanted(name):
            parameter.fill_(1.0)
        elif name.endswith(".bias") and wanted(name):
            parameter.zero_()
        elif not name.endswith(("norm.weight", ".bias")):
            drawn = torch.randn(parameter.shape, generator=generator)
            if wanted(name):
                parameter.copy_((drawn * model.config.initializer_range).to(parameter.dtype))
    return model
