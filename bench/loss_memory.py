"""Memory of the loss at V3's vocabulary: 8,192 tokens x 129,280, forward and backward, logits a few at a time.

The limit is what cannot be done without: hidden states, the head, the gradients of both, and one tile of logits. A
process of its own for each form, its peak resident memory beyond what it had before the loss.
"""

from __future__ import annotations

from process import in_child, memory
from rows import arguments, publish, repeats, row

TOKENS, HIDDEN, VOCABULARY = 8192, 1024, 129_280
TILE_TOKENS = 128


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    tokens = 512 if options.quick else TOKENS

    def peak(most_logits: int | None) -> float:
        return float(in_child(_measure, tokens, most_logits))

    tile = TILE_TOKENS * VOCABULARY * 4
    kept = 4 * (2 * tokens * HIDDEN + 2 * VOCABULARY * HIDDEN)
    ours = [peak(TILE_TOKENS * VOCABULARY) for _ in range(repeats(options))]
    whole = [peak(None)] if tokens <= 2048 else []  # 8,192 tokens' logits would be 4.2 GB, three times over
    publish(
        "loss_memory",
        row(
            f"peak memory of the loss, {tokens} x {VOCABULARY} in tiles of {TILE_TOKENS} tokens",
            "bytes",
            ours,
            [kept + tile] * len(ours),
            less_is_better=True,
            hidden_bytes=4 * tokens * HIDDEN,
            tile_bytes=tile,
            all_at_once=whole,
        ),
        options,
    )


def _measure(tokens: int, most_logits: int | None) -> int:
    import torch

    from leanseek.data.batches import IGNORED
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.model.transformer import Transformer
    from leanseek.train.objectives.next_token import cross_entropy

    torch.set_num_threads(1)
    shape = {"hidden_size": HIDDEN, "vocab_size": VOCABULARY, "num_hidden_layers": 1, "first_k_dense_replace": 1}
    model = initialise(Transformer(load_preset("laptop").replace(**shape, num_nextn_predict_layers=0)), 0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # forget the peak so far: making the model takes more than the loss
    before = memory("VmRSS")
    hidden = torch.randn(tokens, HIDDEN).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,))
    assert IGNORED not in targets
    loss = cross_entropy(model, hidden, targets, most_logits)
    torch.autograd.grad(loss, [hidden, model.lm_head.weight])
    # The head itself was there before.
    return memory("VmHWM") - before + 4 * VOCABULARY * HIDDEN


if __name__ == "__main__":
    main()
