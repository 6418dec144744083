"""DeepSeek-V2-Lite's shape, 4 or 8 bits: reading prompts and drawing replies, against llama.cpp in the same process.

Both sides have random weights of the same shape, held in memory; the peer's file is made once (9 GB for 4 bits, 17 GB
for 8). For every piece of work the peer first tries its settings (threads, flash attention, micro-batch, repacked
weights or not) and takes the fastest; then both sides are measured in turn. Not a token is sampled on the peer's side,
where our engine samples.

    python bench/vs_llama_cpp.py --folder DIR                     # Q4_0 against int4
    python bench/vs_llama_cpp.py --folder DIR --format iq4_nl     # or q4_k, or q8_0 against int8
    python bench/vs_llama_cpp.py --folder DIR --layers 4 --quick  # 4 layers of it: a test of the script
"""

from __future__ import annotations

import ctypes
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rows import alternate, arguments, publish, repeats, row

PRESET = "deepseek-v2-lite"
TARGETS = {"prefill": {"int4": 2.5, "int8": 3.0}, "decode": {"int4": 1.1, "int8": 1.1}, "streams": {"int4": 1.7}}
STEPS = 16  # tokens of a sample of decoding
UBATCHES = (256, 512, 2048)


def make_file(path: Path, config: Any, kind: str) -> None:
    """Write a GGUF file of random blocks."""
    from leanseek.checkpoint.gguf import write_gguf
    from leanseek.tokens.tokenizer import Tokenizer

    folder = path.with_name(f"{path.stem}-tokenizer")
    Tokenizer.train(["some words to make a tokenizer of\n"] * 50, 512).save(folder)
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, 1 << 24, dtype=np.uint8)

    def form_of(gguf: Any, piece: Any) -> Any:
        types = gguf.GGMLQuantizationType
        if len(piece.shape) == 1 or piece.name.endswith("ffn_gate_inp.weight"):
            return types.F32
        if kind == "q4_k" and piece.shape[-1] % 256:
            return types.IQ4_NL
        return types[kind.upper()]

    def blocks(piece: Any, form: Any) -> Any:
        import gguf

        if form.name == "F32":
            whole = np.ones(piece.shape) if len(piece.shape) == 1 else generator.normal(0, 0.02, piece.shape)
            return whole.astype(np.float32)
        per_block, size = gguf.GGML_QUANT_SIZES[form]
        count = int(np.prod(piece.shape)) // per_block
        data = np.resize(noise[generator.integers(0, 1 << 20) :], count * size).reshape(count, size)
        # A block begins with its scale, in fp16; Q4_K's with two. The values then have a usual size.
        spread = {"Q4_0": 4.6, "IQ4_NL": 66.0, "Q4_K": 32 * 4.6, "Q8_0": 74.0}[form.name]
        data[:, :2] = np.array([1 / spread / piece.shape[-1] ** 0.5], np.float16).view(np.uint8)
        if form.name == "Q4_K":
            data[:, 2:4] = np.array([7.5 / spread / piece.shape[-1] ** 0.5], np.float16).view(np.uint8)
        return data.reshape(gguf.quant_shape_to_byte_shape(piece.shape, form))

    def no_weights(name: str) -> Any:
        raise AssertionError(name)

    write_gguf(path, config, no_weights, folder, "q4_0", types=form_of, blocks=blocks)


class Peer:
    """llama.cpp through its C interface."""

    def __init__(self, path: Path, vocabulary: int) -> None:
        import llama_cpp

        self.lib, self.path, self.vocabulary = llama_cpp, path, vocabulary
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        self.model: Any = None
        self.context: Any = None
        self.repacked: bool | None = None

    def open(self, repacked: bool, threads: int, flash: int, ubatch: int, room: int, streams: int) -> None:
        """Make a context of these settings; the model is loaded again only for another kind of weights."""
        lib = self.lib
        self.close_context()
        if self.repacked != repacked:
            if self.model is not None:
                lib.llama_model_free(self.model)
            params = lib.llama_model_default_params()
            params.use_extra_bufts = repacked
            self.model = lib.llama_model_load_from_file(str(self.path).encode(), params)
            assert self.model, "llama.cpp cannot load the file"
            self.repacked = repacked
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, max(ubatch, 2048), ubatch
        params.n_threads = params.n_threads_batch = threads
        params.n_seq_max, params.flash_attn_type, params.kv_unified = streams, flash, True
        self.context = lib.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp cannot make a context"
        self.batch = lib.llama_batch_init(max(ubatch, 2048), 0, streams)
        self.memory = lib.llama_get_memory(self.context)

    def close_context(self) -> None:
        if self.context is not None:
            self.lib.llama_batch_free(self.batch)
            self.lib.llama_free(self.context)
            self.context = None

    def _run(self, tokens: list[tuple[int, int, int]]) -> None:
        """Run (token, position, sequence) triples; the last of each sequence gives logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = i == len(tokens) - 1 or tokens[i + 1][2] != sequence
        assert self.lib.llama_decode(self.context, batch) == 0, "llama.cpp failed"

    def read(self, prompt: list[int]) -> float:
        """Read a prompt in an empty context; return seconds."""
        self.lib.llama_memory_clear(self.memory, True)
        begin_s = time.perf_counter()
        for first in range(0, len(prompt), 2048):
            self._run([(t, first + i, 0) for i, t in enumerate(prompt[first : first + 2048])])
        self.lib.llama_synchronize(self.context)
        return time.perf_counter() - begin_s

    def begin(self, prompt: list[int], streams: int) -> None:
        """Have some streams behind a prompt."""
        self.read(prompt)
        for other in range(1, streams):
            self.lib.llama_memory_seq_cp(self.memory, 0, other, -1, -1)
        self.position, self.streams, self.random = len(prompt), streams, np.random.default_rng(1)

    def draw(self) -> float:
        """Draw tokens for every stream; return tokens/s of all."""
        begin_s = time.perf_counter()
        for _ in range(STEPS):
            tokens = self.random.integers(0, self.vocabulary, self.streams).tolist()
            self._run([(token, self.position, stream) for stream, token in enumerate(tokens)])
            self.position += 1
            self.lib.llama_synchronize(self.context)
        return STEPS * self.streams / (time.perf_counter() - begin_s)


class Ours:
    """leanseek's engine."""

    def __init__(self, config: Any, form: str) -> None:
        from leanseek.checkpoint.packed import random_packed

        self.model = random_packed(config, form)

    def _engine(self, prompt: list[int], streams: int, tokens: int) -> Any:
        from leanseek.engine.engine import Engine
        from leanseek.engine.request import SamplingParams

        engine = Engine(self.model, max_batch=streams, max_context_tokens=len(prompt) + tokens + 1)
        params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, n=streams, ignore_eos=True)
        engine.add(prompt, params)
        return engine

    def read(self, prompt: list[int]) -> float:
        """Read a prompt and draw one token; return seconds."""
        engine = self._engine(prompt, 1, 1)
        begin_s = time.perf_counter()
        while engine.has_work:
            engine.step()
        return time.perf_counter() - begin_s

    def begin(self, prompt: list[int], streams: int, tokens: int) -> None:
        """Have some streams behind a prompt, with room for so many tokens each."""
        self.engine = self._engine(prompt, streams, tokens)
        for _ in range(2):
            self.engine.step()
        self.streams = streams

    def draw(self) -> float:
        """Draw tokens for every stream; return tokens/s of all."""
        begin_s = time.perf_counter()
        for _ in range(STEPS):
            self.engine.step()
        return STEPS * self.streams / (time.perf_counter() - begin_s)


def best(settings: list[tuple[Any, ...]], rate: Callable[..., float]) -> tuple[Any, ...]:
    """Return the settings with the highest rate; of one alone it is not asked."""
    return settings[0] if len(settings) == 1 else max(settings, key=lambda one: rate(*one))


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the peer's file is kept")
    parser.add_argument("--format", default="q4_0", choices=("q4_0", "iq4_nl", "q4_k", "q8_0"))
    parser.add_argument("--layers", type=int, default=0, help="fewer layers: a test of the script, not a measurement")
    parser.add_argument("--threads", type=int, default=0, help="of our side (default: all)")
    options = parser.parse_args()
    if options.layers and (options.write or not options.quick):
        parser.error("--layers goes with --quick alone: the peer has all layers, so such rows are not written")
    import torch

    from leanseek.kernels.threads import available_threads
    from leanseek.model.config import load_preset

    config = load_preset(PRESET)
    path = options.folder / f"{PRESET}-{options.format}.gguf"
    threads = options.threads or available_threads()
    torch.set_num_threads(threads)
    form = "int8" if options.format == "q8_0" else "int4"
    if not path.is_file():
        options.folder.mkdir(parents=True, exist_ok=True)
        print(f"making {path}", flush=True)
        make_file(path, config, options.format)
    if options.layers:
        config = config.replace(num_hidden_layers=options.layers)
    ours, peer = Ours(config, form), Peer(path, config.vocab_size)
    generator = np.random.default_rng(2)
    counts = sorted({1, threads})
    cut = f"{options.layers} layers (the peer: all) of " if options.layers else ""
    count = repeats(options)
    versions = ("torch", "llama_cpp_python")

    def tell(work: str, kind: str, ours_s: list[float], peer_s: list[float], setting: tuple[Any, ...]) -> None:
        names = dict(zip(("repacked", "threads", "flash", "ubatch"), setting, strict=True))
        found = row(
            f"{cut}{PRESET}, {form} against {options.format}: {work}",
            "tokens/s",
            ours_s,
            peer_s,
            packages=versions,
            peer_settings=names,
            our_threads=threads,
        )
        publish("vs_llama_cpp", found, options, TARGETS[kind].get(form))

    for length in (128,) if options.quick else (512, 2048):
        work = f"prefill of {length}"
        if options.only not in work:
            continue
        prompt = generator.integers(0, config.vocab_size, length).tolist()

        def rate(*setting: Any, prompt: list[int] = prompt) -> float:
            peer.open(*setting, room=len(prompt) + 64, streams=1)
            return len(prompt) / peer.read(prompt)

        # Weights of one kind after the other: each change loads the file again.
        choices = [(r, t, f, u) for r in (True, False) for t in counts[-1:] for f in (0, 1) for u in UBATCHES]
        choices = [one for one in choices if one[3] <= max(length, 256)]
        setting = best(choices[:1] if options.quick else choices, rate)
        peer.open(*setting, room=length + 64, streams=1)
        ours.read(prompt)
        sides = {"ours": lambda p=prompt: len(p) / ours.read(p), "peer": lambda p=prompt: len(p) / peer.read(p)}
        samples = alternate(sides, count)
        tell(work, "prefill", samples["ours"], samples["peer"], setting)
    works = [(1, 1), (1, 4096), (8, 1), (16, 1)]
    for streams, context in [(1, 1), (4, 1)] if options.quick else works:
        work = f"decode, {streams} streams, context {context}"
        if options.only not in work:
            continue
        prompt = generator.integers(0, config.vocab_size, context).tolist()
        room = (context + (count + 2) * STEPS + 16) if streams == 1 else context + streams * (count + 2) * STEPS + 64

        def rate(*setting: Any, prompt: list[int] = prompt, streams: int = streams, room: int = room) -> float:
            peer.open(*setting, room=room, streams=streams)
            peer.begin(prompt[:256], streams)
            peer.draw()
            return peer.draw()

        choices = list(itertools.product((True, False), counts, (0, 1), (512,)))
        setting = best(choices[-1:] if options.quick else choices, rate)
        peer.open(*setting, room=room, streams=streams)
        peer.begin(prompt, streams)
        ours.begin(prompt, streams, (count + 2) * STEPS)
        ours.draw(), peer.draw()
        samples = alternate({"ours": ours.draw, "peer": peer.draw}, count)
        tell(work, "decode" if streams == 1 else "streams", samples["ours"], samples["peer"], setting)


if __name__ == "__main__":
    main()
