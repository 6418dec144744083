"""Weight initialisation: normal with one standard deviation, norms at one, biases at zero."""

from __future__ import annotations

import torch

from leanseek.model.transformer import Transformer


@torch.no_grad()
def initialise(model: Transformer, seed: int) -> Transformer:
    """Fill a model's weights from a seed; the same seed gives the same weights on every device.

    Args:
        model: filled in place.
        seed: of the generator.
    Returns:
        `model`.
    Source: DeepSeek-V3 report section 4.2 (one standard deviation for all); `initializer_range` sets it.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif name.endswith(".bias"):
            parameter.zero_()
        else:
            drawn = torch.randn(parameter.shape, generator=generator) * model.config.initializer_range
            parameter.copy_(drawn.to(parameter.dtype))
    return model
