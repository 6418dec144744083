"""leanseek convert: a model folder's weights in another type, without building the model."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal

from leanseek.errors import UsageError, nearest
from leanseek.log import Progress, progress, say
from leanseek.run import model_folder
from leanseek.units import format_bytes, parse_count

# --to -> the class that does it: made of (source, out, to) and the options that it knows, it tells `total_bytes` and
# `written_bytes`, and has `run(on_progress)`. Another target is a file with such a class, and a line here.
TARGETS = {
    **dict.fromkeys(("fp8", "bf16", "fp32"), "leanseek.checkpoint.convert:Conversion"),
    **dict.fromkeys(("int8", "int4"), "leanseek.checkpoint.packed:PackedConversion"),
    "gguf": "leanseek.checkpoint.gguf:GgufConversion",
}
MEGABYTE = 1_000_000


def convert(
    source: Path,
    out: Path,
    *,
    to: str,
    scale_format: Literal["fp32", "ue8m0"] = "fp32",
    max_shard_bytes: str = "5G",
    gguf_type: Literal["f16", "q8_0", "q4_0"] = "f16",
) -> None:
    """Convert a model folder: to DeepSeek's FP8 and back, between bf16 and fp32, packed, or to a file for llama.cpp.

    It works tensor by tensor, so memory need not hold the model. Stopped, by Ctrl-C or otherwise, it goes on where it
    was when the same command is run again.

    Example: leanseek convert runs/laptop laptop-fp8 --to fp8

    Args:
        source: A run folder (its latest checkpoint) or a model folder.
        out: Folder that is made, which must not have anything in it; with --to gguf, the file.
        to: fp8, bf16, fp32, gguf; or int8 or int4, packed for serving on a CPU.
        scale_format: Scales of FP8 blocks: any (fp32), or powers of two (ue8m0), as V3.1 and later have them.
        max_shard_bytes: Largest file of weights, such as 5G or 500M.
        gguf_type: What a GGUF file keeps the weights in.
    """
    if to not in TARGETS:
        raise UsageError(f"--to {to!r} is not known{nearest(to, TARGETS)}; accepted: {', '.join(TARGETS)}")
    if scale_format != "fp32" and to != "fp8":
        raise UsageError(f"--scale-format {scale_format} goes with --to fp8, not with --to {to}")
    if gguf_type != "f16" and to != "gguf":
        raise UsageError(f"--gguf-type {gguf_type} goes with --to gguf, not with --to {to}")
    shard_bytes = parse_count(max_shard_bytes)
    if shard_bytes < 1:
        raise UsageError(f"--max-shard-bytes {max_shard_bytes}: at least 1 is needed")
    folder = model_folder(source)
    # Here, so that a wrong option or folder is told at once and --help does not wait for torch.
    module, _, name = TARGETS[to].partition(":")
    kind: Any = getattr(importlib.import_module(module), name)
    options = (
        {"gguf_type": gguf_type} if to == "gguf" else {"scale_format": scale_format, "max_shard_bytes": shard_bytes}
    )
    work = kind(folder, out, to, **options)
    made = format_bytes(work.written_bytes)
    say(f"converting {folder} to {to}: {format_bytes(work.total_bytes)} are read, {made} written")
    try:
        with progress(work.total_bytes // MEGABYTE or None, f"to {to}, MB") as bar:
            work.run(_Meter(bar))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; finished files are kept: run the same command again to go on") from None
    print(f"{out}: {to}, {made} of weights")


class _Meter:
    """Counts bytes, and shows megabytes."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._bytes = bar, 0

    def __call__(self, count: int, kept: bool) -> None:
        self._bytes += count
        done = self._bytes // MEGABYTE
        if kept:
            self._bar.start_at(done)
        elif done > self._bar.done:
            self._bar.advance(done - self._bar.done)
