"""Quantised: stored tensors read a few rows at a time, FP8 blocks multiplied by their scales, and made from weights."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.checkpoint.shards import BITS, StoredTensor, shown
from leanseek.errors import CheckpointError, nearest

# Side of the square of weights that share a scale (DeepSeek-V3 report section 3.3.2, its `weight_block_size`).
BLOCK = 128
LARGEST_E4M3 = 448.0
SCALE = "_scale_inv"  # stands for what a block is multiplied by, despite its name
FP8, SCALES = "F8_E4M3", ("F32", "F8_E8M0")
# Numbers that are in memory at once beside the weights: enough that a copy is fast.
PIECE = 1 << 18
# Header's type -> torch's, of what is read as numbers.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    FP8: torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# By code. Looked up, they are had six times as fast as from torch's conversion on a CPU.
_E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
# What weights may be stored as without scales.
PLAIN = ("F32", "BF16", "F16", "F64")
# Projections of attention, its indexer and the MLPs. Embedding, head, norms, router, the MTP layer's eh_proj and the
# indexer's weights_proj stay as they are (DeepSeek-V3 README_WEIGHTS.md, DeepSeek-V3.2 inference/model.py).
_QUANTISED = re.compile(
    r".*\.(self_attn\.(q_proj|k_proj|v_proj|o_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|indexer\.(wq_b|wk))"
    r"|mlp\.(.*\.)?(gate_proj|up_proj|down_proj))\.weight"
)


def is_quantised(name: str) -> bool:
    """Whether DeepSeek's FP8 files store a tensor of this name in FP8."""
    return _QUANTISED.fullmatch(name) is not None


def scales_of(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the scales of a folder's FP8 weights, by the weight's name.

    Args:
        tensors: of the folder, by name.
    Raises:
        CheckpointError: a scale or its weight is missing, or of another shape or type than DeepSeek's.
    """
    found: dict[str, StoredTensor] = {}
    for name, scale in tensors.items():
        if not name.endswith(SCALE):
            continue
        weight = tensors.get(name.removesuffix(SCALE))
        if weight is None:
            hint = nearest(name.removesuffix(SCALE), tensors)
            raise CheckpointError(f"{scale.path}: {shown(name)} is the scale of a weight that is not there{hint}")
        if weight.dtype != FP8:
            raise CheckpointError(
                f"{weight.path}: {shown(weight.name)} is {weight.dtype} and has a scale; only {FP8} weights have one"
            )
        if scale.dtype not in SCALES:
            raise CheckpointError(f"{scale.path}: {shown(name)} is {scale.dtype}; scales are {' or '.join(SCALES)}")
        if len(weight.shape) != 2 or scale.shape != grid_shape(weight.shape):
            need = list(grid_shape(weight.shape)) if len(weight.shape) == 2 else "weights of two dimensions"
            raise CheckpointError(
                f"{scale.path}: {shown(name)} has shape {list(scale.shape)}; {shown(weight.name)} of shape "
                f"{list(weight.shape)} in blocks of {BLOCK} by {BLOCK} needs {need}"
            )
        found[weight.name] = scale
    for name, weight in tensors.items():
        if weight.dtype == FP8 and name not in found:
            raise CheckpointError(
                f"{weight.path}: {shown(name)} is {FP8}, but its scale {shown(name + SCALE)} is missing"
            )
    return found


def check_form(config: Mapping[str, Any], where: str) -> None:
    """Refuse a config.json that announces another form of quantisation than DeepSeek's FP8.

    Raises:
        CheckpointError: it does.
    """
    form = config.get("quantization_config")
    if form is None:
        return
    if not isinstance(form, Mapping):
        raise CheckpointError(f"{where}: quantization_config = {str(form)[:80]}: an object or null is needed")
    accepted: dict[str, tuple[Any, ...]] = {
        "quant_method": ("fp8",),
        "fmt": ("e4m3", None),
        "weight_block_size": ([BLOCK, BLOCK], None),
        "scale_fmt": ("ue8m0", "float", None),
    }
    for name, values in accepted.items():
        if (value := form.get(name)) not in values:
            known = " or ".join(repr(one) for one in values if one is not None)
            raise CheckpointError(
                f"{where}: quantization_config.{name} = {value!r}: only {known} is read; take the bf16 files instead"
            )


def grid_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a weight's scales: one for each block, the last ones cut."""
    return tuple(-(-size // BLOCK) for size in shape)


def dequantise_blocks(weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply each block of an FP8 weight by its scale.

    Args:
        weight: [out, in], float8_e4m3fn.
        scale: [ceil(out / 128), ceil(in / 128)], float32 or float8_e8m0fnu.
    Returns:
        [out, in], float32: the exact products, rounded once.
    Source: DeepSeek-V3 inference/kernel.py, `weight_dequant`.
    """
    rows, columns = weight.shape
    by_row = scale.float().repeat_interleave(BLOCK, dim=1)[:, :columns]
    return e4m3_numbers(weight).mul_(by_row.repeat_interleave(BLOCK, dim=0)[:rows])


def e4m3_numbers(codes: Tensor) -> Tensor:
    """Return what e4m3 codes stand for, in memory of its own; float8_e4m3fn of any shape -> float32 of the same."""
    if codes.device.type != "cpu":
        return codes.float()
    return _E4M3.index_select(0, codes.reshape(-1).view(torch.uint8).int()).view(codes.shape)


def quantise_blocks(weight: Tensor, *, scale_fmt: str | None = None) -> tuple[Tensor, Tensor]:
    """Round a weight to FP8, each block with the scale that takes its largest number to 448.

    Args:
        weight: [out, in], any float type.
        scale_fmt: "ue8m0" for scales that are powers of two, rounded up; None for any.
    Returns:
        The weight in float8_e4m3fn, and its scales in float32: what `dequantise_blocks` takes. A block of zeros has
        scale 1; one with a number that is not finite has such a scale, and is of no use.
    Source: DeepSeek-V3 inference/kernel.py, `act_quant`, with a weight's square blocks.
    """
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    down, across = padded.shape[0] // BLOCK, padded.shape[1] // BLOCK
    blocks = padded.view(down, BLOCK, across, BLOCK)
    largest = blocks.abs().amax(dim=(1, 3))
    # Not below the smallest normal number: a scale that is nought would make infinities of tiny weights.
    scale = torch.where(largest == 0, 1.0, (largest / LARGEST_E4M3).clamp_min(torch.finfo(torch.float32).tiny))
    if scale_fmt == "ue8m0":
        mantissa, exponent = torch.frexp(scale)
        powers = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
        scale = torch.where(scale.isfinite(), powers, scale)
    scaled = (blocks / scale[:, None, :, None]).clamp_(-LARGEST_E4M3, LARGEST_E4M3)
    return scaled.view(padded.shape)[:rows, :columns].to(torch.float8_e4m3fn), scale


def read_rows(stored: StoredTensor, first: int = 0, last: int | None = None) -> Tensor:
    """Map some rows of a stored tensor (its first dimension) into memory.

    Args:
        stored: of a type in `DTYPES`.
        first, last: rows; None: to the end. A tensor without dimensions is one row.
    Returns:
        [last - first, ...], in the stored type. Do not keep it: its pages count as memory in use.
    Raises:
        CheckpointError: the file has changed since its header was read.
    """
    shape = stored.shape or (1,)
    last = shape[0] if last is None else last
    size = BITS[stored.dtype] // 8
    row = math.prod(shape[1:]) * size
    return over(stored.map(first * row, last * row), DTYPES[stored.dtype], (last - first, *shape[1:]))


def over(data: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor over bytes that lie in memory, which it keeps there; a copy where they are not aligned.

    Args:
        data: as a file has them; may be none.
        dtype, shape: of the tensor.
    """
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that some must not be written to, which nobody does
        flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:  # other writers may put bytes anywhere
        flat = flat.clone()
    return flat.view(dtype).view(shape)


def pieces(stored: StoredTensor, scale: StoredTensor | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield a stored tensor a few rows at a time, each piece with the number of its first row.

    A matrix's pieces begin at a multiple of 128 rows.

    Args:
        stored: the tensor.
        scale: of its blocks, if it is FP8; pieces are then float32, else of the stored type.
    Raises:
        CheckpointError: a scale is not a number that weights can be multiplied by.
    """
    shape = stored.shape or (1,)
    row = max(math.prod(shape[1:]), 1)
    least = BLOCK if len(shape) == 2 else 1
    step = max(PIECE // row // least, 1) * least
    scale_grid = None if scale is None else scale_values(scale)
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        rows = read_rows(stored, first, last)
        if scale_grid is None:
            yield first, rows
        else:
            yield first, dequantise_blocks(rows, scale_grid[first // BLOCK : -(-last // BLOCK)])


def read_tensor(stored: StoredTensor, scale: StoredTensor | None = None) -> Tensor:
    """Read a whole stored tensor, as `pieces` gives it, into memory of its own.

    Raises:
        CheckpointError: as `pieces`.
    """
    whole = torch.empty(stored.shape or (1,), dtype=DTYPES[stored.dtype] if scale is None else torch.float32)
    for first, rows in pieces(stored, scale):
        whole[first : first + len(rows)] = rows
    return whole.view(stored.shape)


def scale_values(scale: StoredTensor) -> Tensor:
    """Read a weight's scales, in float32.

    Raises:
        CheckpointError: one of them is not a number that weights can be multiplied by.
    """
    values = read_rows(scale).float()
    wrong = ~(values.isfinite() & (values >= 0))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        raise CheckpointError(
            f"{scale.path}: {shown(scale.name)} has the scale {values[row, column].item()} at [{row}, {column}]; "
            "scales are finite and not below 0: the file is damaged, get it anew"
        )
    return values


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's numbers as a shard stores them."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
