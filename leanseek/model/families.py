"""Families: what the config.json of each model_type must say, may leave out, and cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Attention over one cached latent per token (MLA); the same over the tokens that an indexer chooses (DSA);
# or heads that share keys and values in groups (the dense students).
AttentionKind = Literal["latent", "sparse", "grouped"]

LATENT = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
INDEX = ("index_n_heads", "index_head_dim", "index_topk")
GROUPED = ("num_key_value_heads", "head_dim")
EXPERTS = (
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "norm_topk_prob",
    "scoring_func",
    "topk_method",
)
ALWAYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_LATENT_NEEDS = (*ALWAYS, *LATENT[1:], *EXPERTS[:5])


@dataclass(frozen=True)
class Family:
    """The models of one model_type.

    Args:
        architecture: as config.json names it to other programs.
        attention: which kind all layers have.
        needs: keys that config.json must have.
        fixed: key -> the values that models of the family can have for it.
        defaults: key -> value where config.json leaves it out or says null.
        query_key_norm: whether every head's queries and keys are normed (grouped attention).
        query_bias: whether query, key and value projections have a bias though no key says so (grouped attention).
    """

    architecture: str
    attention: AttentionKind
    needs: tuple[str, ...]
    fixed: Mapping[str, tuple[Any, ...]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    query_key_norm: bool = False
    query_bias: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """The keys that only some families have, and this one does."""
        if self.attention == "grouped":
            return GROUPED
        return LATENT + EXPERTS + (INDEX if self.attention == "sparse" else ())


_V3 = {
    "scoring_func": ("sigmoid",),
    "topk_method": ("noaux_tc",),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "tie_word_embeddings": (False,),
    "num_nextn_predict_layers": (0, 1),
}
_DENSE = {"hidden_act": ("silu",), "num_nextn_predict_layers": (0,)}

FAMILIES: Mapping[str, Family] = {
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        attention="latent",
        needs=_LATENT_NEEDS,
        fixed={
            **_V3,
            "scoring_func": ("softmax",),
            "topk_method": ("greedy", "group_limited_greedy"),
            "num_nextn_predict_layers": (0,),
        },
        defaults={"scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False},
    ),
    "deepseek_v3": Family("DeepseekV3ForCausalLM", "latent", _LATENT_NEEDS, _V3),
    "deepseek_v32": Family(
        "DeepseekV32ForCausalLM",
        "sparse",
        (*_LATENT_NEEDS, "q_lora_rank"),
        _V3,
        dict(zip(INDEX, (64, 128, 2048), strict=True)),
    ),
    "llama": Family("LlamaForCausalLM", "grouped", ALWAYS, {**_DENSE, "mlp_bias": (False,)}),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "grouped",
        ALWAYS,
        {**_DENSE, "use_sliding_window": (False,), "attention_bias": (False,)},
        query_bias=True,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", "grouped", ALWAYS, {**_DENSE, "use_sliding_window": (False,)}, query_key_norm=True
    ),
}
