"""Names: checkpoint tensor <-> module parameter. Only experts and the MTP layer's copies differ; the one such table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from leanseek.model.transformer import Transformer

_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint and the place in the module that it fills.

    Args:
        name: in the file.
        target: a view of the module's parameter or buffer, with the file tensor's shape.
        copy: whether the file holds it a second time (the MTP layer's embedding and head): it is
            written for other programs' sake, and not needed when reading.
    """

    name: str
    target: Tensor
    copy: bool = False


def entries(model: Transformer) -> Iterator[Entry]:
    """Yield every tensor of a model's checkpoint, in the module's order.

    The module stacks a layer's experts ([E, 2F, D] and [E, D, F]); files hold each expert on its own.
    """
    for name, tensor in model.state_dict(keep_vars=False).items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # one tensor with the embedding, under whose name files have it
        match = _STACKED.fullmatch(name)
        if match is None:
            yield Entry(name, tensor)
            continue
        prefix, kind = match.groups()
        for expert in range(tensor.shape[0]):
            if kind == "down_proj":
                yield Entry(f"{prefix}.{expert}.down_proj.weight", tensor[expert])
            else:
                gate, up = tensor[expert].chunk(2, dim=0)
                yield Entry(f"{prefix}.{expert}.gate_proj.weight", gate)
                yield Entry(f"{prefix}.{expert}.up_proj.weight", up)
    if model.mtp_layer is not None:
        prefix = f"model.layers.{model.config.num_hidden_layers}"
        yield Entry(f"{prefix}.embed_tokens.weight", model.model.embed_tokens.weight, copy=True)
        yield Entry(f"{prefix}.shared_head.head.weight", model.lm_head.weight, copy=True)
