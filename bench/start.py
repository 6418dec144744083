"""From command to first token, and memory: a packed folder of DeepSeek-V2-Lite's shape against llama.cpp's file.

Each side's files are read through before its turn, so that they are in the system's file cache where that has room for
them: 9 GB. The peer is called from Python too, which costs it a few tenths of a second. A process is started, opens the
model, reads 16 tokens and draws one: that is the first token. Then it reads 512 tokens, which use every expert, and
draws 16 more: what it then holds in memory, pages of mapped files among it, is compared with weights and cache.

    python bench/start.py --folder DIR --format q4_0        # the peer's file is that of bench/vs_llama_cpp.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rows import alternate, arguments, publish, repeats, row
from vs_llama_cpp import PRESET, Ours, Peer, make_file

PROMPT, LONG, STEPS = 16, 512, 16


def make_folder(folder: Path, config: Any, form: str) -> None:
    """Write a packed folder of random weights."""
    from leanseek.checkpoint.directory import empty_model
    from leanseek.checkpoint.packed import FORMS, packed_config, parts_of, random_parts
    from leanseek.checkpoint.quantised import bytes_of
    from leanseek.checkpoint.shards import WEIGHTS
    from leanseek.checkpoint.writer import ShardWriter
    from leanseek.files import write_json

    folder.mkdir(parents=True)
    layouts = [output for part in parts_of(empty_model(config, device="meta"), FORMS[form]) for output in part.outputs]
    with ShardWriter(folder / WEIGHTS, layouts) as writer:
        for part, tensors in random_parts(config, form):
            for output, tensor in zip(part.outputs, tensors, strict=True):
                writer.append(output.name, bytes_of(tensor))
    write_json(folder / "config.json", packed_config(config.to_dict(), form))


def child(side: str, path: Path, repacked: bool, threads: int) -> None:
    """Be one side: say when the first token is there, and then the bytes that are held."""
    import psutil

    generator = np.random.default_rng(0)
    short, long = (generator.integers(0, 100_000, count).tolist() for count in (PROMPT, LONG))
    if side == "ours":
        import torch

        from leanseek.checkpoint.packed import open_model

        torch.set_num_threads(threads)
        ours = Ours(None, "", 0, model=open_model(path, path.suffix[1:]))
        ours.read(short)
        print("first", flush=True)
        ours.begin(long, 1, STEPS + 2)
        ours.draw()
    else:
        peer = Peer(path, 100_000)
        peer.open(repacked, threads, 1, 512, LONG + 64, 1)
        peer.read(short)
        print("first", flush=True)
        peer.begin(long, 1)
        peer.draw()
    print(psutil.Process().memory_info().rss, flush=True)


def warm(path: Path) -> None:
    """Have a file, or a folder's files, in the system's file cache."""
    buffer = bytearray(16 << 20)
    for each in sorted(path.glob("*")) if path.is_dir() else [path]:
        with each.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def started(side: str, path: Path, repacked: bool, threads: int) -> tuple[float, int]:
    """Return the seconds from command to first token, and the bytes that were held at last."""
    command = [sys.executable, __file__, "--folder", ".", "--child", side, str(path), str(int(repacked)), str(threads)]
    begin_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "first", "the child failed"
        took_s = time.perf_counter() - begin_s
        return took_s, int(process.stdout.readline())


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where both sides' files are kept")
    parser.add_argument("--form", default="int4", choices=("int4", "int8"), help="of our weights")
    parser.add_argument("--format", default="q4_0", help="of the peer's file")
    parser.add_argument("--repacked", action="store_true", help="have the peer repack its weights, for speed")
    parser.add_argument(
        "--child", nargs=4, metavar=("SIDE", "PATH", "REPACKED", "THREADS"), help="for this script alone"
    )
    options = parser.parse_args()
    if options.child:
        side, path, repacked, threads = options.child
        child(side, Path(path), repacked == "1", int(threads))
        return
    from leanseek.checkpoint.packed import packed_bytes
    from leanseek.kernels.threads import available_threads
    from leanseek.model.config import load_preset

    config, threads = load_preset(PRESET), available_threads()
    path, folder = options.folder / f"{PRESET}-{options.format}.gguf", options.folder / f"{PRESET}.{options.form}"
    if not path.is_file():
        make_file(path, config, options.format)
    if not folder.is_dir():
        make_folder(folder, config, options.form)
    held: dict[str, list[int]] = {"ours": [], "peer": []}

    def start(side: str) -> float:
        files = folder if side == "ours" else path
        warm(files)
        took_s, size = started(side, files, options.repacked, threads)
        held[side].append(size)
        return took_s

    samples = alternate({side: lambda side=side: start(side) for side in held}, repeats(options))
    more = {"peer_format": options.format, "peer_repacked": options.repacked, "threads": threads}
    more |= {"packages": ("torch", "llama_cpp_python"), "less_is_better": True}
    work = f"{PRESET}, {options.form} against llama.cpp"
    found = row(f"{work}: command to first token", "s", samples["ours"], samples["peer"], **more)
    publish("start", found, options, 1.0)
    cache = (LONG + STEPS) * config.cache_width * 2 * config.num_hidden_layers
    needed = packed_bytes(config, options.form) + cache
    more |= {"weights_and_cache_bytes": needed, "over_weights_and_cache": round(held["ours"][-1] / needed, 4)}
    found = row(f"{work}: memory", "bytes", held["ours"], held["peer"], **more)
    publish("start", found, options)


if __name__ == "__main__":
    main()
