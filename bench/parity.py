"""The same function as transformers: relative error of fp32 logits, greedy tokens that agree, family by family."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rows import arguments, publish, row

TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "num_attention_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
V2 = {"model_type": "deepseek_v2", "n_shared_experts": 2}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
STUDENT = {"num_key_value_heads": 2, "rope_scaling": None}
FAMILIES: dict[str, dict[str, Any]] = {
    "deepseek_v2 (Lite)": V2,
    "deepseek_v2": {**V2, **GROUPS, "q_lora_rank": 16, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**GROUPS, "q_lora_rank": 16},
    "deepseek_v32": {
        **GROUPS,
        "model_type": "deepseek_v32",
        "q_lora_rank": 16,
        "index_n_heads": 16,
        "index_head_dim": 16,
        "index_topk": 12,
    },
    "qwen2": {**STUDENT, "model_type": "qwen2"},
    "qwen3": {**STUDENT, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "llama": {**STUDENT, "model_type": "llama"},
}
TEXTS, TOKENS, NEW_TOKENS = 3, 96, 64


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    from leanseek.checkpoint.directory import save_model
    from leanseek.engine.engine import Engine
    from leanseek.engine.request import SamplingParams
    from leanseek.model.config import ModelConfig
    from leanseek.model.initialise import initialise
    from leanseek.model.segments import Segments
    from leanseek.model.transformer import Transformer

    torch.set_num_threads(1)
    for family, changes in FAMILIES.items():
        if options.only not in family:
            continue
        errors, agreed = [], []
        for seed in range(1 if options.quick else options.repeats):
            model = initialise(Transformer(ModelConfig.from_dict({**TINY, **changes})), seed).eval()
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                    if name.endswith(("norm.weight", "e_score_correction_bias", ".bias")):
                        tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
            texts_ST = torch.randint(3, 320, (TEXTS, TOKENS), generator=generator)
            with tempfile.TemporaryDirectory() as folder, torch.no_grad():
                save_model(model, Path(folder) / "model")
                theirs = AutoModelForCausalLM.from_pretrained(
                    Path(folder) / "model", dtype=torch.float32, experts_implementation="eager"
                )
                wanted = theirs(texts_ST).logits
                got = model.logits(model(texts_ST.reshape(-1), Segments.packed([TOKENS] * TEXTS))).view_as(wanted)
                errors.append(float((got - wanted).norm() / wanted.norm()))
                prompts_ST = texts_ST[:, :16]
                said = theirs.generate(
                    prompts_ST, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
                )
                params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
                ours = torch.tensor([o.token_ids for o in Engine(model).generate(prompts_ST.tolist(), params)])
                agreed.append(float((ours == said[:, 16:]).float().mean()))
        figures = row(
            f"{family}: logits of {TEXTS} texts of {TOKENS} tokens against transformers'",
            "relative error",
            errors,
            packages=("torch", "transformers"),
            greedy_tokens_agreed=min(agreed),
            greedy_tokens=TEXTS * NEW_TOKENS,
        )
        print(f"greedy tokens over the cache that agree: {min(agreed):.1%}")
        publish("parity", figures, options)


if __name__ == "__main__":
    main()
