"""Native: the compiled library of kernels: loads it, checks its version, and says why it could not."""

from __future__ import annotations

import ctypes
import platform
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from leanseek.errors import KernelError

# Of csrc/kernels.h; the two change together.
ABI = 13
# Every instruction set that there are kernels for, the best last of those that one machine can have.
VARIANTS = ("generic", "avx2", "avx512", "neon")
FOLDER = Path(__file__).resolve().parent
NAME = {"darwin": "libleanseek_kernels.dylib", "win32": "leanseek_kernels.dll"}.get(
    sys.platform, "libleanseek_kernels.so"
)
HOW_TO_BUILD = "install a C++ compiler and run `make kernels`, or `pip install` leanseek again"

_I32, _I64, _F32, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_FAILURES = {
    1: "there is not enough memory for its activations; give it fewer tokens at once",
    2: "a token chose an expert that there is not",
    4: "a token is none of the vocabulary, or a text is longer than its pages",
    3: "a weight is not finite, or too large for its scale: it cannot be packed",
}
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
# Arguments of csrc/kernels.h's functions, after `variant` and `threads`.
_CALLS: dict[str, tuple[type, ...]] = {
    "rms_norm": (_I32, *(_POINTER,) * 5, _I64, _I64, _F32),
    "rms_norm_backward": (_I32, *(_POINTER,) * 6, _I64, _I64, _F32),
    "pack": (_I32, _I32, _POINTER, _I64, _I64, _POINTER, _POINTER),
    "packed_linear": (_I32, _POINTER, _I64, _I64, _POINTER, _POINTER, _I64, _POINTER),
    "decode": (_POINTER, _POINTER),
    "panels_product": (_POINTER, _I64, _I64, _POINTER, _I64, _POINTER),
    "expanded_attention": (*(_POINTER,) * 4, *(_I64,) * 7, _F32, _POINTER),
    "stored_linear": (_I32, _POINTER, _I64, _I64, _POINTER, _POINTER, _I64, _POINTER),
    "stored_experts": (
        *(_I32, _POINTER, _I64, _I64, _POINTER, _POINTER, _I64, _I64),
        *(_POINTER, _I64, _POINTER),
    ),
    "learn_forward": (_POINTER,),
    "learn_backward": (_POINTER,),
    "attend_forward": (_POINTER,),
    "attend_backward": (_POINTER,),
    "likelihood": (_POINTER, _POINTER, _I64, _I64, _F32, _POINTER, _POINTER),
    "likelihood_backward": (_POINTER, _POINTER, _I64, _I64, _F32, *(_POINTER,) * 3),
    "stream": (_POINTER, _I64, _POINTER),
    "peak": (_I64, _POINTER),
    "packed_experts": (
        *(_I32, _POINTER, _I64, _I64, _POINTER, _POINTER, _I64, _I64),
        *(_POINTER, _POINTER, _I64, _POINTER, _POINTER, _POINTER),
    ),
}


@dataclass(frozen=True)
class Native:
    """The library, or the reason why there is none.

    Args:
        library: None if it could not be loaded.
        variants: number of each instruction set that this processor can run, by name.
        reason: why something is lacking, in words; empty if nothing is.
    """

    library: ctypes.CDLL | None
    variants: dict[str, int]
    reason: str


@cache
def native() -> Native:
    """Load the library, once per process."""
    return load(FOLDER / NAME)


def load(path: Path) -> Native:
    """Load a library of kernels; a library that cannot be used is none, with the reason."""
    if not path.is_file():
        return Native(None, {}, f"the native kernels are not built ({path.name} is not there): {HOW_TO_BUILD}")
    try:
        library = ctypes.CDLL(str(path))
        version = library.leanseek_abi()
    except (OSError, AttributeError) as error:
        return Native(None, {}, f"{path.name} cannot be loaded ({error}): {HOW_TO_BUILD}")
    if version != ABI:
        return Native(None, {}, f"{path.name} is of version {version}, and {ABI} is needed: {HOW_TO_BUILD}")
    library.leanseek_variants.restype = ctypes.c_char_p
    library.leanseek_variant.argtypes = [ctypes.c_char_p]
    for name, arguments in _CALLS.items():
        call = getattr(library, f"leanseek_{name}")
        call.argtypes, call.restype = [_I32, _I32, *arguments], _I32
    compiled = library.leanseek_variants().decode().split()
    usable = {name: library.leanseek_variant(name.encode()) for name in compiled}
    return Native(library, {name: number for name, number in usable.items() if number >= 0}, "")


def missing(variant: str) -> str:
    """Return why an instruction set's kernels cannot be used here; an empty text if they can."""
    found = native()
    if found.library is None:
        return found.reason
    if variant not in found.variants:
        return f"this machine ({platform.machine()}) has no {variant} kernels, or its processor cannot run them"
    return ""


def call(name: str, variant: str, *arguments: object) -> None:
    """Call a kernel with this thread's share of the machine, which is torch's.

    Args:
        name: of csrc/kernels.h, without its prefix.
        variant: one for which `missing` has nothing to say.
        arguments: numbers; tensors are passed as pointers (contiguous, on the CPU, alive until the call returns);
            None is a null pointer.
    Raises:
        KernelError: the library refused the call; nothing was computed.
    """
    found = native()
    assert found.library is not None, "callers ask `missing` first"
    passed = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
    failed = getattr(found.library, f"leanseek_{name}")(found.variants[variant], torch.get_num_threads(), *passed)
    if failed:
        raise KernelError(f"{name}: {_FAILURES.get(failed, f'failed with {failed}')}")


def type_code(dtype: torch.dtype) -> int | None:
    """Return how the library names a tensor's type; None: it does not take it."""
    return _TYPES.get(dtype)
