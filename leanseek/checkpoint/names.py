"""Names: checkpoint tensor <-> module parameter. Only experts and the MTP layer's copies differ; the one such table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from leanseek.model.config import ModelConfig
from leanseek.model.transformer import Transformer

_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)")


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint and the place in the module that it fills.

    Args:
        name: in the file.
        target: a view of the module's parameter or buffer, with the file tensor's shape.
        of: the parameter or buffer that it is a part of.
        row: which row of that, for one of a stack of experts.
        copy: whether the file holds it a second time (the MTP layer's embedding and head): it is
            written for other programs' sake, and not needed when reading.
    """

    name: str
    target: Tensor
    of: str
    row: int = 0
    copy: bool = False


def entries(model: Transformer) -> Iterator[Entry]:
    """Yield every tensor of a model's checkpoint, in the module's order.

    The module stacks a layer's experts ([E, 2F, D] and [E, D, F]); files hold each expert on its own.
    """
    for name, tensor in model.state_dict(keep_vars=False).items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # one tensor with the embedding, under whose name files have it
        yield from parts_of(name, tensor)
    if model.mtp_layer is not None:
        for name, of in copies(model.config).items():
            yield Entry(name, model.get_parameter(of), of, copy=True)


def copies(config: ModelConfig) -> dict[str, str]:
    """Return the parameters that files hold a second time, as the MTP layer's: its name there -> the module's."""
    prefix = f"model.layers.{config.num_hidden_layers}"
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    return {f"{prefix}.embed_tokens.weight": embedding, f"{prefix}.shared_head.head.weight": head}


def parts_of(name: str, tensor: Tensor, first: int = 0) -> Iterator[Entry]:
    """Yield the tensors of a checkpoint that a parameter or a buffer is made of.

    Args:
        name: the module's.
        tensor: itself; of stacked experts, perhaps some rows only.
        first: the number of the first of these rows.
    """
    match = _STACKED.fullmatch(name)
    if match is None:
        yield Entry(name, tensor, name)
        return
    prefix, kind = match.groups()
    for row, one in enumerate(tensor, first):
        if kind == "down_proj":
            yield Entry(f"{prefix}.{row}.down_proj.weight", one, name, row)
        else:
            gate, up = one.chunk(2, dim=0)
            yield Entry(f"{prefix}.{row}.gate_proj.weight", gate, name, row)
            yield Entry(f"{prefix}.{row}.up_proj.weight", up, name, row)
