"""Latent attention over its cache, one layer: absorbed against expanded, by the number of new tokens."""

from __future__ import annotations

from rows import alternate, arguments, publish, repeats, row, seconds_of

SHAPES = {"deepseek-v2-lite": "bfloat16", "laptop": "float32"}
CACHED = (1024, 4096)
NEW = (1, 16, 32, 64, 128, 192, 256, 512)


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch

    from leanseek.model.attention import LatentAttention, absorb_up_to
    from leanseek.model.cache import CacheSpec, ContiguousCache
    from leanseek.model.config import load_preset
    from leanseek.model.segments import Segments

    for name, dtype in SHAPES.items():
        config = load_preset(name)
        torch.manual_seed(0)
        attention = LatentAttention(config).to(getattr(torch, dtype))
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        for cached in CACHED[:1] if options.quick else CACHED:
            cache = ContiguousCache([CacheSpec("latent", config.cache_width, dtype)], 1, cached + max(NEW))
            cache.store.normal_()
            for new in NEW[:2] if options.quick else NEW:
                work = f"{name} ({dtype}), {new} new tokens after {cached}, absorbed against expanded"
                if options.only not in work:
                    continue
                x_TD = torch.randn(new, config.hidden_size).to(getattr(torch, dtype))
                turns_TR = torch.ones(new, config.qk_rope_head_dim // 2, dtype=torch.complex64)
                segments = Segments((new,), cached_lengths=(cached,))

                def rate(absorb: bool, x=x_TD, turns=turns_TR, segments=segments, cache=cache, attention=attention):
                    attention.absorb_up_to = 1 << 30 if absorb else 0
                    with torch.inference_mode():
                        return len(x) / seconds_of(lambda: attention(x, turns, segments, cache, 0), 3)

                sides = {"ours": lambda r=rate: r(True), "peer": lambda r=rate: r(False)}
                alternate(sides, 1)
                found = alternate(sides, repeats(options))
                figures = row(work, "tokens/s", found["ours"], found["peer"], absorb_up_to=absorb_up_to(config))
                publish("absorbed", figures, options)


if __name__ == "__main__":
    main()
