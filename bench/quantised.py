"""What packed weights cost in quality: int8 and int4 against the same model in bf16, and both against fp32.

Random layers of DeepSeek-V2-Lite's widths (embedding and head cut to 8,192 tokens, so that it fits), and a trained
model if one is given: relative error of the logits, KL divergence of the next token's distribution, and on the trained
one the change of perplexity on texts like those it was pretrained on.

With `--forms`, forms that have no kernels too: the weights alone are rounded, activations are not, so that bits and
errors of the forms stand side by side.

    python bench/quantised.py --model runs/laptop/checkpoints/pretrain-1000
    python bench/quantised.py --model runs/laptop/checkpoints/pretrain-1000 --forms
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

from rows import arguments, publish, row

TOKENS = 512
TEXT, TEXTS, UNSEEN = 128, 400, 1_000_003  # tokens of a text, how many, and a seed that no recipe has


# Name -> bits of a code, numbers that share a scale, bits of a scale (8: a whole number times one fp16 a row), scales
# that are tried of each group.
SEARCHED = (1.0, 0.96, 0.92, 0.87, 1.06, 1.125)
FINE = tuple(0.7 + 0.025 * i for i in range(21))
FORMS: dict[str, tuple[int, int, int, tuple[float, ...]]] = {
    "int4, groups of 32, fp16 scales": (4, 32, 16, SEARCHED),
    "int4, groups of 32, fp16 scales, fine search": (4, 32, 16, FINE),
    "int4, groups of 32, 8-bit scales": (4, 32, 8, SEARCHED),
    "int4, groups of 64, fp16 scales": (4, 64, 16, SEARCHED),
    "int4, groups of 64, fp16 scales, fine search": (4, 64, 16, FINE),
    "int4, groups of 128, fp16 scales": (4, 128, 16, SEARCHED),
    "int3, groups of 32, fp16 scales": (3, 32, 16, SEARCHED),
    "int3, groups of 32, 8-bit scales, fine search": (3, 32, 8, FINE),
}


def rounded(weight_OD: Any, bits: int, group: int, scale_bits: int, parts: tuple[float, ...]) -> Any:
    """Return a weight rounded in groups: of the scales tried each is fitted by least squares, and the best is kept."""
    import torch
    import torch.nn.functional as F

    rows, width = weight_OD.shape
    grouped = F.pad(weight_OD.float(), (0, -width % group)).view(rows, -1, group)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    low = -(1 << (bits - 1))

    def codes(scale: Any) -> Any:
        return torch.where(scale == 0, 0.0, grouped / scale).round().clamp_(low, -low - 1)

    def fitted(q: Any) -> Any:
        squares = q.square().sum(-1, keepdim=True)
        return torch.where(squares == 0, 0.0, (q * grouped).sum(-1, keepdim=True) / squares).half().float()

    best_scale, best = torch.zeros_like(largest), torch.full_like(largest, float("inf"))
    for part in parts:
        q = codes(largest * part / low)
        scale = fitted(q)
        error = (grouped - scale * q).square().sum(-1, keepdim=True)
        best, best_scale = torch.where(error < best, error, best), torch.where(error < best, scale, best_scale)
    if scale_bits == 8:  # its sign and 127 steps of the row's largest
        step = (best_scale.abs().amax(1, keepdim=True) / 127).half().float()
        best_scale = torch.where(step == 0, 0.0, (best_scale / step).round()) * step
    return (codes(best_scale) * best_scale).flatten(1)[:, :width]


def measure_forms(
    name: str, folder: Path, tokens_T: Any, lengths: tuple[int, ...], options: Any, trained: bool
) -> None:
    """Write a row for each form: bits of a weight, its error, and what it does to the logits."""
    import torch

    from leanseek.checkpoint.directory import load_model
    from leanseek.checkpoint.names import entries
    from leanseek.checkpoint.quantised import is_quantised
    from leanseek.model.segments import Segments

    model = load_model(folder)
    plain = {
        entry.name: entry.target.clone()
        for entry in entries(model)
        if is_quantised(entry.name) and ".indexer." not in entry.name and not entry.name.endswith("kv_b_proj.weight")
    }
    targets = {entry.name: entry.target for entry in entries(model)}
    with torch.inference_mode():
        wanted = model.logits(model(tokens_T, Segments.packed(lengths)))
        for form, (bits, group, scale_bits, parts) in FORMS.items():
            squares = [0.0, 0.0]
            for key, weight in plain.items():
                new = rounded(weight, bits, group, scale_bits, parts)
                squares[0] += float((new - weight).square().sum())
                squares[1] += float(weight.square().sum())
                targets[key].copy_(new)
            found = model.logits(model(tokens_T, Segments.packed(lengths)))
            more: dict[str, Any] = compare(wanted, found)
            if trained:
                change = loss(found, tokens_T, lengths) - loss(wanted, tokens_T, lengths)
                more["perplexity_change"] = float(torch.tensor(change).exp() - 1)
            error = [more.pop("logit_error")]
            more |= {"bits": bits + scale_bits / group, "weight_error": (squares[0] / squares[1]) ** 0.5}
            work = f"{name}: logits, weights alone in {form}"
            publish("quantised", row(work, "relative error", error, less_is_better=True, **more), options)


def compare(wanted_TW: Any, found_TW: Any) -> dict[str, float]:
    """Return relative error, mean KL divergence in nats, and how often the likeliest token is the same."""
    import torch.nn.functional as F

    wanted, found = wanted_TW.float(), found_TW.float()
    log_wanted, log_found = F.log_softmax(wanted, -1), F.log_softmax(found, -1)
    return {
        "logit_error": float((found - wanted).norm() / wanted.norm()),
        "kl": float((log_wanted.exp() * (log_wanted - log_found)).sum(-1).mean()),
        "same_first": float((wanted.argmax(-1) == found.argmax(-1)).float().mean()),
    }


def loss(logits_TW: Any, tokens_T: Any, lengths: tuple[int, ...]) -> float:
    """Return the mean negative log-likelihood of each next token of its text."""
    import torch
    import torch.nn.functional as F

    last_S = torch.tensor(lengths).cumsum(0) - 1
    known_T = torch.ones(len(tokens_T), dtype=torch.bool).index_fill_(0, last_S, False)
    return float(F.cross_entropy(logits_TW[known_T].float(), tokens_T.roll(-1)[known_T]))


def measure(name: str, folder: Path, tokens_T: Any, lengths: tuple[int, ...], options: Any, trained: bool) -> None:
    import torch

    if options.forms:
        return measure_forms(name, folder, tokens_T, lengths, options, trained)
    from leanseek.checkpoint.packed import open_model
    from leanseek.model.segments import Segments

    logits: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        os.environ["XDG_CACHE_HOME"] = cache
        for form in ("fp32", "bf16", "int8", "int4"):
            model = open_model(folder, form)
            logits[form] = model.logits(model(tokens_T, Segments.packed(lengths))).float()
            del model
    for form in ("bf16", "int8", "int4"):
        against = "fp32"
        found = compare(logits[against], logits[form])
        to_bf16 = compare(logits["bf16"], logits[form])
        more: dict[str, Any] = {f"{key}_to_bf16": value for key, value in to_bf16.items() if form != "bf16"}
        more |= {key: value for key, value in found.items() if key != "logit_error"}
        if trained:
            before, after = (loss(logits[one], tokens_T, lengths) for one in ("fp32", form))
            more["perplexity_change"] = float(torch.tensor(after - before).exp() - 1)
        work = f"{name}: logits in {form} against {against}"
        publish("quantised", row(work, "relative error", [found["logit_error"]], less_is_better=True, **more), options)


def main() -> None:
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a trained model's folder, or its run")
    parser.add_argument("--forms", action="store_true", help="forms of rounded weights side by side")
    options = parser.parse_args()
    import torch

    from leanseek.checkpoint.directory import save_model
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.model.transformer import Transformer
    from leanseek.run import model_folder

    generator = torch.Generator().manual_seed(0)
    layers, experts = (2, 8) if options.quick else (3, 32)
    changes = {"num_hidden_layers": layers, "vocab_size": 8192, "n_routed_experts": experts}
    changes |= {"bos_token_id": 0, "eos_token_id": 1}
    config = load_preset("deepseek-v2-lite").replace(**changes)
    with tempfile.TemporaryDirectory() as folder:
        save_model(initialise(Transformer(config), 0), Path(folder) / "model")
        tokens_T = torch.randint(2, 8192, (64 if options.quick else TOKENS,), generator=generator)
        measure(
            f"random, V2-Lite's widths, {layers} layers",
            Path(folder) / "model",
            tokens_T,
            (len(tokens_T),),
            options,
            False,
        )
    if options.model is not None:
        from leanseek.data.corpus import documents
        from leanseek.envs.environment import load_environment
        from leanseek.tokens.tokenizer import Tokenizer

        source = model_folder(options.model)
        tokenizer = Tokenizer.load(source)
        environments = [load_environment(name) for name in ("running_total", "grid_walk", "largest")]
        count = 20 if options.quick else TEXTS
        found = itertools.islice(documents(UNSEEN, count, environments), count)
        texts = [ids for text in found if len(ids := tokenizer.encode(text)[:TEXT]) > 1]
        tokens_T, lengths = torch.tensor([i for text in texts for i in text]), tuple(map(len, texts))
        measure(f"{options.model.name}, trained", source, tokens_T, lengths, options, True)


if __name__ == "__main__":
    main()
