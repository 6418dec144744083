"""DeepSeek-V2-Lite's shape, 4 or 8 bits: reading prompts and drawing replies, against llama.cpp in the same process.

Both sides have random weights of the same shape, held in memory; the peer's file is made once (9 GB for 4 bits, 17 GB
for 8). For every piece of work the peer's settings (threads, flash attention, micro-batch, repacked weights or not) and
formats are tried once, by `--search`, and kept in its folder; then both sides are measured in turn, the peer with the
fastest. Not a token is sampled on the peer's side, where our engine samples.

    python bench/vs_llama_cpp.py --folder DIR --search                   # or with --format q4_0,iq4_nl
    python bench/vs_llama_cpp.py --folder DIR                             # int4 against the best of Q4_0, IQ4_NL, Q4_K
    python bench/vs_llama_cpp.py --folder DIR --form int8 --only decode   # against Q8_0; some of the work
    python bench/vs_llama_cpp.py --folder DIR --distinct 4                # where memory does not hold both sides
    python bench/vs_llama_cpp.py --folder DIR --layers 4 --quick          # 4 layers of it: a test of the script

`--distinct N` gives our side N different layers with experts, which stand one after the other again and again. It is
for where memory has no room for both sides: a step comes back to a layer's attention after N layers, 45 MB of 4 bits
each, so that the processor's last cache must be much smaller than that, or ours reads from it what the peer reads from
memory.
"""

from __future__ import annotations

import copy
import ctypes
import itertools
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rows import alternate, arguments, publish, repeats, row

PRESET = "deepseek-v2-lite"
TARGETS = {"prefill": {"int4": 2.5, "int8": 3.0}, "decode": {"int4": 1.1, "int8": 1.1}, "streams": {"int4": 1.7}}
STEPS = 16  # tokens of a sample of decoding
SEARCH_TOKENS = 1024  # at most, while settings are tried
UBATCHES = (512, 2048)
FORMATS = {"int4": ("q4_0", "iq4_nl", "q4_k"), "int8": ("q8_0",)}
# What is measured: kind, streams, tokens of context or prompt.
WORKS = {
    "prefill of 512": ("prefill", 1, 512),
    "prefill of 2048": ("prefill", 1, 2048),
    "decode, 1 streams, context 1": ("decode", 1, 1),
    "decode, 1 streams, context 4096": ("decode", 1, 4096),
    "decode, 8 streams, context 1": ("streams", 8, 1),
    "decode, 16 streams, context 1": ("streams", 16, 1),
}
# Whose settings long texts begin with.
SHORTER = {"prefill of 2048": "prefill of 512", "decode, 1 streams, context 4096": "decode, 1 streams, context 1"}
QUICK_WORKS = {"prefill of 128": ("prefill", 1, 128), "decode, 4 streams, context 1": ("streams", 4, 1)}


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
        # No weight is the lowest there is, as on our side: with a mean that is not nought all tokens would soon have
        # one direction, and one choice of experts.
        if form.name in ("Q4_0", "IQ4_NL"):
            data |= np.where(data & 15, 0, 8).astype(np.uint8) | np.where(data >> 4, 0, 128).astype(np.uint8)
        if form.name == "Q8_0":
            data[data == 128] = 0
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

    def close(self) -> None:
        """Give back what was loaded."""
        self.close_context()
        if self.model is not None:
            self.lib.llama_model_free(self.model)
        self.model = None

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

    def draw(self, steps: int = STEPS) -> float:
        """Draw tokens for every stream; return tokens/s of all."""
        begin_s = time.perf_counter()
        for _ in range(steps):
            tokens = self.random.integers(0, self.vocabulary, self.streams).tolist()
            self._run([(token, self.position, stream) for stream, token in enumerate(tokens)])
            self.position += 1
            self.lib.llama_synchronize(self.context)
        return steps * self.streams / (time.perf_counter() - begin_s)


class Ours:
    """leanseek's engine."""

    def __init__(self, config: Any, form: str, distinct: int, *, model: Any = None) -> None:
        from torch import nn

        from leanseek.checkpoint.packed import random_packed

        if model is not None:
            self.model = model
            return
        first = config.first_k_dense_replace
        count = min(first + distinct, config.num_hidden_layers) if distinct else config.num_hidden_layers
        self.model = random_packed(config.replace(num_hidden_layers=count), form)
        blocks = list(self.model.model.layers)
        for layer in range(count, config.num_hidden_layers):
            block = copy.copy(blocks[first + (layer - first) % (count - first)])
            block.layer = layer
            blocks.append(block)
        self.model.model.layers, self.model.config = nn.ModuleList(blocks), config

    def _engine(self, prompt: list[int], streams: int, tokens: int) -> Any:
        from leanseek.engine.engine import Engine
        from leanseek.engine.request import SamplingParams

        engine = Engine(self.model, max_batch=streams, max_context_tokens=len(prompt) + tokens + 1)
        params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=1, n=streams, ignore_eos=True)
        engine.add(prompt, params)
        return engine

    def share(self, work: tuple[str, int, int], samples: list[float], limits: Any) -> dict[str, float]:
        """Return how near to the machine's limits the median of some samples is."""
        from leanseek.evals.speed import weight_bytes
        from leanseek.model.count import forward_flops_per_token

        kind, streams, length = work
        rate, config = statistics.median(samples), self.model.config
        if kind == "prefill":
            return {"share_of_peak": round(rate * forward_flops_per_token(config, length) / 1e9 / limits.peak_gops, 3)}
        cache = streams * length * config.cache_width * 2 * config.num_hidden_layers
        size = weight_bytes(self.model, streams) + cache
        return {"bytes_per_step": size, "share_of_stream": round(rate / streams * size / 1e9 / limits.stream_gb_s, 3)}

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
        while not self.engine.step():
            pass
        self.streams = streams

    def draw(self) -> float:
        """Draw tokens for every stream; return tokens/s of all."""
        begin_s = time.perf_counter()
        for _ in range(STEPS):
            self.engine.step()
        return STEPS * self.streams / (time.perf_counter() - begin_s)


def search(
    peer: Peer, work: tuple[str, int, int], threads: int, settled: tuple[Any, ...] | None, quick: bool
) -> tuple[tuple[Any, ...], float]:
    """Return the peer's fastest settings for a piece of work, and their rate in tokens/s.

    Args:
        peer: with the file to try.
        work: of `WORKS`.
        threads: that both sides get.
        settled: settings that were the fastest on shorter texts; what does not depend on length is then kept.
        quick: try one.
    """
    kind, streams, length = work
    prompt = np.random.default_rng(2).integers(0, peer.vocabulary, min(length, SEARCH_TOKENS)).tolist()
    ubatches = (512,) if kind != "prefill" or len(prompt) <= 512 else UBATCHES
    # Weights of one kind after the other: each change loads the file again.
    repacked = (peer.repacked is not False, peer.repacked is False) if settled is None else settled[:1]
    flash = settled[2:3] if settled is not None and kind == "prefill" else (0, 1)
    rates = {}
    for setting in list(itertools.product(repacked, (threads,), flash, ubatches))[: 1 if quick else None]:
        peer.open(*setting, room=len(prompt) + streams * 12 + 64, streams=streams)
        if kind == "prefill":
            rates[setting] = len(prompt) / peer.read(prompt)
        else:
            peer.begin(prompt, streams)
            peer.draw(4)
            rates[setting] = peer.draw(4)
    found = max(rates, key=rates.__getitem__)
    return found, rates[found]


def measure(ours: Ours, peer: Peer, setting: tuple[Any, ...], work: tuple[str, int, int], count: int) -> dict[str, Any]:
    """Return samples of both sides in tokens/s, taken in turn."""
    kind, streams, length = work
    prompt = np.random.default_rng(2).integers(0, peer.vocabulary, length).tolist()
    if kind == "prefill":
        peer.open(*setting, room=length + 64, streams=1)
        ours.read(prompt[:64])
        return alternate(
            {"ours": lambda: length / ours.read(prompt), "peer": lambda: length / peer.read(prompt)}, count
        )
    peer.open(*setting, room=length + streams * (count + 2) * STEPS + 64, streams=streams)
    peer.begin(prompt, streams)
    ours.begin(prompt, streams, (count + 2) * STEPS)
    ours.draw(), peer.draw()
    return alternate({"ours": ours.draw, "peer": peer.draw}, count)


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the peer's files and settings are kept")
    parser.add_argument("--form", default="int4", choices=tuple(FORMATS), help="of our weights")
    parser.add_argument("--format", default="", help="of the peer's weights, with commas between (default: all)")
    parser.add_argument("--search", action="store_true", help="only try the peer's settings, and keep them")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers: a test of the script, not a measurement")
    parser.add_argument("--distinct", type=int, default=0, help="different layers with experts on our side (0: all)")
    parser.add_argument("--threads", type=int, default=0, help="of both sides (default: all)")
    options = parser.parse_args()
    if options.layers and (options.write or not options.quick):
        parser.error("--layers goes with --quick alone: the peer has all layers, so such rows are not written")
    import torch

    from leanseek.files import write_json
    from leanseek.kernels.limits import measure_limits
    from leanseek.kernels.threads import available_threads
    from leanseek.model.config import load_preset

    config, form = load_preset(PRESET), options.form
    threads = options.threads or available_threads()
    torch.set_num_threads(threads)
    formats = tuple(options.format.split(",")) if options.format else FORMATS[form]
    options.folder.mkdir(parents=True, exist_ok=True)
    paths = {name: options.folder / f"{PRESET}-{name}.gguf" for name in formats}
    for name, path in paths.items():
        if not path.is_file():
            print(f"making {path}", flush=True)
            make_file(path, config, name)
    kept = options.folder / "settings.json"
    known: dict[str, dict[str, Any]] = json.loads(kept.read_text()) if kept.is_file() else {}
    works = {w: of for w, of in (QUICK_WORKS if options.quick else WORKS).items() if re.search(options.only, w)}
    peers: dict[str, Peer] = {}

    def peer_of(name: str) -> Peer:
        """Return the peer with a file, which alone is in memory."""
        if name not in peers:
            for other in peers.values():
                other.close()
            peers.clear()
            peers[name] = Peer(paths[name], config.vocab_size)
        return peers[name]

    for name in formats:
        for work, of in works.items():
            if options.search or name not in known.get(work, {}):
                settled = known.get(SHORTER.get(work, ""), {}).get(name, {}).get("setting")
                setting, rate = search(peer_of(name), of, threads, settled, options.quick)
                known.setdefault(work, {})[name] = {"setting": setting, "rate": rate}
                print(f"peer, {name}, {work}: {rate:.1f} tokens/s with {setting}", flush=True)
                if not options.quick:
                    write_json(kept, known)
    if options.search:
        return
    ours = Ours(config.replace(num_hidden_layers=options.layers) if options.layers else config, form, options.distinct)
    limits = measure_limits(3)
    cut = f"{options.layers} layers (the peer: all) of " if options.layers else ""
    for work, of in works.items():
        name = max(formats, key=lambda one, work=work: known[work][one]["rate"])
        setting = tuple(known[work][name]["setting"])
        samples = measure(ours, peer_of(name), setting, of, repeats(options))
        found = row(
            f"{cut}{PRESET}, {form} against llama.cpp: {work}",
            "tokens/s",
            samples["ours"],
            samples["peer"],
            packages=("torch", "llama_cpp_python"),
            peer_format=name,
            peer_settings=dict(zip(("repacked", "threads", "flash", "ubatch"), setting, strict=True)),
            threads=threads,
            our_distinct_layers=options.distinct or config.num_hidden_layers,
            stream_gb_s=round(limits.stream_gb_s, 1),
            peak_gops=round(limits.peak_gops),
            **ours.share(of, samples["ours"], limits),
        )
        publish("vs_llama_cpp", found, options, TARGETS[of[0]].get(form))


if __name__ == "__main__":
    main()
