"""Stored: a bf16 or FP8 folder opened for inference on a CPU; its matrices stay in the files, mapped into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from leanseek.checkpoint.directory import check_tensors, empty_model
from leanseek.checkpoint.names import entries
from leanseek.checkpoint.quantised import (
    DTYPES,
    FP8,
    check_form,
    is_quantised,
    over,
    read_tensor,
    scale_values,
    scales_of,
)
from leanseek.checkpoint.shards import MappedShards, StoredTensor, read_shards, stored_tensors
from leanseek.kernels.registry import chosen
from leanseek.kernels.stored import Stored, StoredExperts
from leanseek.model.config import ModelConfig
from leanseek.model.experts import Experts
from leanseek.model.layers import Embedding, Linear, SwiGLU
from leanseek.model.transformer import Transformer

EMBEDDING = "model.embed_tokens.weight"


def has_fp8(folder: str | Path) -> bool:
    """Whether a folder's files hold FP8 weights."""
    return any(stored.dtype == FP8 for stored in stored_tensors(read_shards(folder)).values())


def is_native() -> bool:
    """Whether native kernels are there for such weights; without them torch's own bf16 operators are quicker."""
    return chosen("stored_linear") is not None


def load_stored(
    folder: str | Path, weights: str, *, progress: Callable[[float], None] = lambda share: None
) -> Transformer:
    """Open a plain folder whose matrices native kernels read where they are.

    In the files stay the projections of attention and MLPs, the experts, the head and the embedding: bf16 ones as they
    are, with "fp8" FP8 ones with their scales too; what is of another type becomes bf16 in memory. In fp32 are what
    absorbed attention takes apart (kv_b_proj), norms, routers, the indexer and the MTP layer's joint.

    Args:
        folder: plain (bf16, fp32, FP8).
        weights: "bf16" or "fp8".
        progress: is told the share of the weights that are ready.
    Raises:
        CheckpointError: the folder cannot be read, or its tensors are not its config's.
    """
    folder = Path(folder)
    config = ModelConfig.from_file(folder / "config.json")
    check_form(config.extra, str(folder / "config.json"))
    tensors = stored_tensors(read_shards(folder))
    scales = scales_of(tensors)
    model = empty_model(config, device="meta")
    check_tensors(folder, model, tensors, scales)
    reader = _Reader(tensors, scales, weights == "fp8")
    wanted = [entry.name for entry in entries(model) if not entry.copy]
    taken: set[str] = set()
    for keep, names in list(_places(model)):
        keep(reader)
        taken.update(names)
        progress(len(taken) / len(wanted))
    for name in wanted:
        if name not in taken:
            fill(model, name, reader.short(name) if name == EMBEDDING else reader.full(name))
    progress(1.0)
    return model.eval()


def mapped_bytes(model: Transformer) -> int:
    """Return what a model's weights take that are as their files have them."""
    held = (getattr(module, "stored", None) for module in model.modules())
    return sum(stored.nbytes for stored in held if stored is not None)


class _Reader:
    """Gives a folder's tensors as the kernels take them."""

    def __init__(self, tensors: dict[str, StoredTensor], scales: dict[str, StoredTensor], fp8: bool) -> None:
        self.tensors, self.scales, self.fp8 = tensors, scales, fp8
        self._shards = MappedShards()

    def matrix(self, name: str, *, fp8: bool) -> Stored:
        """Return a matrix as the file has it; in bf16 if it is FP8 and that is not wanted, or of another type."""
        if fp8 and name in self.scales:
            return Stored(self._mapped(self.tensors[name]), scale_values(self.scales[name]).clone())
        return Stored(self.short(name))

    def matrices(self, *groups: list[str]) -> list[list[Stored]]:
        """Return matrices that are to be of one type."""
        fp8 = self.fp8 and all(name in self.scales for names in groups for name in names)
        return [[self.matrix(name, fp8=fp8) for name in names] for names in groups]

    def short(self, name: str) -> Tensor:
        """Return a tensor in bf16, mapped if it is that in the file."""
        stored = self.tensors[name]
        if stored.dtype == "BF16":
            return self._mapped(stored)
        return read_tensor(stored, self.scales.get(name)).bfloat16()

    def full(self, name: str) -> Tensor:
        """Return a tensor in fp32, in memory."""
        return read_tensor(self.tensors[name], self.scales.get(name)).float()

    def _mapped(self, stored: StoredTensor) -> Tensor:
        return over(self._shards.bytes_of(stored), DTYPES[stored.dtype], stored.shape)


def _places(model: Transformer) -> Iterator[tuple[Callable[[_Reader], None], list[str]]]:
    """Yield what puts each module's matrices in place, and their names."""
    kinds = ("gate_proj", "up_proj", "down_proj")
    for name, module in model.named_modules():
        if isinstance(module, Experts):
            every = range(module.gate_up_proj.shape[0])
            groups = [[f"{name}.{e}.{kind}.weight" for e in every] for kind in kinds]
            yield _keeping_experts(module, groups), [one for group in groups for one in group]
        elif isinstance(module, SwiGLU):
            groups = [[f"{name}.{kind}.weight"] for kind in kinds]
            yield _keeping_experts(module, groups), [one for group in groups for one in group]
        elif isinstance(module, Linear):
            weight, tied = f"{name}.weight", model.config.tie_word_embeddings
            attends = is_quantised(weight) and ".mlp." not in name and ".indexer." not in name
            if name == "lm_head":
                yield _keeping(module, EMBEDDING if tied else weight), [] if tied else [weight]
            elif attends and not name.endswith("kv_b_proj"):
                yield _keeping(module, weight), [weight]


def _keeping(module: Linear, name: str) -> Callable[[_Reader], None]:
    return lambda reader: module.keep(reader.matrix(name, fp8=reader.fp8))


def _keeping_experts(module: Experts | SwiGLU, groups: list[list[str]]) -> Callable[[_Reader], None]:
    return lambda reader: module.keep(StoredExperts(*reader.matrices(*groups)))


def fill(model: Transformer, name: str, tensor: Tensor) -> None:
    """Put a plain tensor in its place in a model without memory: an embedding as it is, the rest as a copy."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, Embedding):
        module.weight = nn.Parameter(tensor, requires_grad=False)
        module.out_dtype = torch.float32
    elif leaf in module._buffers:
        module._buffers[leaf] = tensor.clone()
    else:
        setattr(module, leaf, nn.Parameter(tensor.clone(), requires_grad=False))
