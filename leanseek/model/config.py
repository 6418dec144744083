"""ModelConfig: what a config.json says about a DeepSeek model, validated, frozen, written back whole."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard

from leanseek.errors import ConfigError, nearest
from leanseek.model.families import EXPERTS, FAMILIES, GROUPED, INDEX, LATENT, Family

# Kinds of rope_scaling beside none: DeepSeek's, and that of Llama 3.1 and its distilled students.
ROPE_KINDS = ("yarn", "llama3")
# Known to `Family.fixed`, kept in `extra`: nothing here reads them.
_ONLY_CHECKED = ("mlp_bias", "use_sliding_window")


@dataclass(frozen=True)
class ModelConfig:
    """A model's shape; every field has the name that it has in Hugging Face's config.json.

    Fields of a mechanism that the family lacks are 0. Keys of the file that are not fields here are kept in
    `extra` and written back unchanged.

    Args:
        vocab_size: rows of the embedding and of the head (W).
        hidden_size: width of the residual stream (D).
        num_hidden_layers: main layers, without the MTP layer.
        first_k_dense_replace: how many of the first layers have a dense MLP.
        intermediate_size: width of the dense MLP.
        moe_intermediate_size: width of one routed expert (F).
        n_routed_experts: routed experts per MoE layer (E).
        n_shared_experts: shared experts, stored as one MLP of that many times F.
        num_experts_per_tok: routed experts that a token uses (K).
        n_group, topk_group: groups of experts, and how many of them a token may use.
        routed_scaling_factor: the chosen experts' weights sum to it (if norm_topk_prob).
        scoring_func, topk_method: how the router scores ("sigmoid" or "softmax") and chooses experts: by biased
            score inside the best groups ("noaux_tc"), by score alone ("greedy"), or inside the groups with the best
            single score ("group_limited_greedy").
        q_lora_rank: rank of the query latent (Q); None: queries come straight from the hidden state.
        kv_lora_rank: rank of the key-value latent (L), the part of a token that is cached.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: per-head widths N, R, V.
        index_n_heads, index_head_dim, index_topk: heads and width of the lightning indexer, and how many tokens
            it leaves to attend to.
        num_key_value_heads, head_dim: of grouped attention.
        rope_scaling: None, or YaRN's fields (type/rope_type "yarn", factor, beta_fast, beta_slow,
            mscale, mscale_all_dim, original_max_position_embeddings), or those of "llama3".
        num_nextn_predict_layers: MTP depth, 0 or 1.
        bos_token_id: None where texts begin without one.
        eos_token_id: the token, or the tokens, that end a reply.
    Raises:
        ConfigError: a value that no DeepSeek model can have.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    first_k_dense_replace: int = 0
    moe_intermediate_size: int = 0
    n_routed_experts: int = 0
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0
    num_key_value_heads: int = 0
    head_dim: int = 0
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    max_position_embeddings: int = 4096
    num_nextn_predict_layers: int = 0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    hidden_act: str = "silu"
    bos_token_id: int | None = 0
    eos_token_id: int | tuple[int, ...] = 1
    initializer_range: float = 0.02
    model_type: str = "deepseek_v3"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no model of the family can be."""
        if self.model_type not in FAMILIES:
            raise ConfigError(_unknown(self.model_type))
        family = self.family
        positive = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
        if family.attention == "grouped":
            positive += GROUPED
        else:
            positive += LATENT[1:]
            positive += "moe_intermediate_size n_routed_experts num_experts_per_tok n_group topk_group".split()
        if family.attention == "sparse":
            positive += INDEX
        for name in (*positive, "max_position_embeddings"):
            if not _is_whole(getattr(self, name), 1):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: a positive whole number is needed")
        if not (_is_whole(self.q_lora_rank, 1) or (self.q_lora_rank is None and family.attention != "sparse")):
            null = "" if family.attention == "sparse" else " or null"
            raise ConfigError(f"q_lora_rank = {self.q_lora_rank!r}: a positive whole number{null} is needed")
        for name in ("first_k_dense_replace", "n_shared_experts"):
            if not _is_whole(getattr(self, name), 0):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: a whole number from 0 is needed")
        if self.bos_token_id is not None and not _is_whole(self.bos_token_id, 0):
            raise ConfigError(f"bos_token_id = {self.bos_token_id!r}: a whole number from 0 or null is needed")
        if not self.eos_token_ids or not all(_is_whole(token, 0) for token in self.eos_token_ids):
            raise ConfigError(f"eos_token_id = {self.eos_token_id!r}: a whole number from 0, or a list of them")
        for name in ("rms_norm_eps", "rope_theta", "routed_scaling_factor", "initializer_range"):
            if not _is_positive(getattr(self, name)):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: a number above 0 is needed")
        for name, accepted in family.fixed.items():
            value = self.extra.get(name, accepted[0]) if name in _ONLY_CHECKED else getattr(self, name)
            if value not in accepted:
                known = " or ".join(repr(one) for one in accepted)
                raise ConfigError(f"{name} = {value!r}: {self.model_type} models have {known}")
        if family.attention == "grouped":
            self._check_heads()
        else:
            self._check_experts()
        if self.rope_dim % 2:
            name = "head_dim" if family.attention == "grouped" else "qk_rope_head_dim"
            raise ConfigError(f"{name} = {self.rope_dim}: rope turns pairs, so it must be even")
        self._check_rope()

    def _check_heads(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )

    def _check_experts(self) -> None:
        if self.n_routed_experts % self.n_group:
            raise ConfigError(
                f"n_routed_experts = {self.n_routed_experts} is not a multiple of n_group = {self.n_group}"
            )
        if self.topk_group > self.n_group:
            raise ConfigError(f"topk_group = {self.topk_group} is more than n_group = {self.n_group}")
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise ConfigError(
                f"num_experts_per_tok = {self.num_experts_per_tok}, but a token can reach only {reachable} experts "
                f"({self.topk_group} of {self.n_group} groups of {self.n_routed_experts // self.n_group})"
            )
        if self.index_topk and self.index_head_dim < self.qk_rope_head_dim:
            raise ConfigError(
                f"index_head_dim = {self.index_head_dim} is less than qk_rope_head_dim = {self.qk_rope_head_dim}, "
                "the part of it that is turned"
            )

    def _check_rope(self) -> None:
        if self.rope_scaling is None:
            return
        if not isinstance(self.rope_scaling, Mapping):
            raise ConfigError(f"rope_scaling = {self.rope_scaling!r}: YaRN's fields or null are needed")
        kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type"))
        if kind not in (*ROPE_KINDS, "default", None):
            raise ConfigError(f"rope_scaling.type = {kind!r}: accepted are {', '.join(ROPE_KINDS)}")
        factor = self.rope_scaling.get("factor")
        if kind in ROPE_KINDS and not (_is_positive(factor) and factor >= 1):
            raise ConfigError(f"rope_scaling.factor = {factor!r}: a number from 1 is needed")

    @property
    def family(self) -> Family:
        """What all models of this model_type have in common."""
        return FAMILIES[self.model_type]

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a reply."""
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key, N + R."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Numbers that one layer caches per token for attention: L + R, or keys and values of grouped attention."""
        if self.family.attention == "grouped":
            return 2 * self.num_key_value_heads * self.head_dim
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def rope_dim(self) -> int:
        """Channels of a head that rope turns."""
        return self.head_dim if self.family.attention == "grouped" else self.qk_rope_head_dim

    @property
    def rope_kind(self) -> str | None:
        """How positions are stretched: "yarn", "llama3", or None."""
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        return kind if kind in ROPE_KINDS else None

    @property
    def yarn(self) -> Mapping[str, Any] | None:
        """The YaRN fields, or None where positions are not stretched so."""
        return self.rope_scaling if self.rope_kind == "yarn" else None

    def is_moe(self, layer: int) -> bool:
        """Whether layer `layer` (counted from 0, the MTP layer last) has routed experts."""
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> ModelConfig:
        """Build a config from config.json's content; unknown keys are kept in `extra`.

        Raises:
            ConfigError: a needed key is missing or a value is not acceptable.
        """
        values = dict(values)
        # Newer transformers nests the rope settings; older files and DeepSeek's own have them flat.
        rope = values.pop("rope_parameters", None)
        if isinstance(rope, Mapping):
            values.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
            if rope.get("rope_type", "default") != "default" and not values.get("rope_scaling"):
                values["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
        kind = str(values.setdefault("model_type", "deepseek_v3"))
        if kind not in FAMILIES:
            raise ConfigError(f"{where}: {_unknown(kind)}")
        family = FAMILIES[kind]
        missing = sorted(name for name in family.needs if name not in values)
        if missing:
            raise ConfigError(f"{where}: missing {', '.join(missing)}")
        grouped = family.attention == "grouped"
        # Where null stands for a family's default. One that null itself means something for keeps it.
        for name in ("n_group", "topk_group", "num_key_value_heads", "head_dim", *family.defaults):
            if values.get(name) is None:
                values.pop(name, None)
        if grouped:
            values.setdefault("num_key_value_heads", values["num_attention_heads"])
            heads, width = values["num_attention_heads"], values["hidden_size"]
            if "head_dim" not in values and _is_whole(heads, 1) and _is_whole(width, 1):
                values["head_dim"] = width // heads
        else:
            # Derived here, so they are not kept; but a file that means something else by them is not such a model.
            for name, only in (("num_key_value_heads", values["num_attention_heads"]), ("moe_layer_freq", 1)):
                if (value := values.pop(name, None)) not in (None, only):
                    raise ConfigError(f"{where}: {name} = {value!r}: {kind} models have {only!r}")
        if isinstance(values.get("eos_token_id"), list):
            values["eos_token_id"] = tuple(values["eos_token_id"])
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"} - (_SOME - set(family.fields))
        values = {**family.defaults, **values}
        known = {k: v for k, v in values.items() if k in names}
        extra = {k: v for k, v in values.items() if k not in names}
        try:
            return cls(**known, extra=extra)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: str | Path) -> ModelConfig:
        """Read a config.json.

        Raises:
            ConfigError: no such file, not JSON, or not a model that leanseek knows.
        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: there is no such file; a model folder has a config.json") from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a JSON object is needed, got {type(values).__name__}")
        return cls.from_dict(values, str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return config.json's content, unknown keys included, as the family's own files spell it."""
        left_out = {"extra"} | (_SOME - set(self.family.fields))
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        if values["rope_scaling"] is not None:
            values["rope_scaling"] = dict(values["rope_scaling"])
        if isinstance(self.eos_token_id, tuple):
            values["eos_token_id"] = list(self.eos_token_id)
        whole = {"architectures": [self.family.architecture], **dict(self.extra), **values}
        if self.family.attention != "grouped":
            whole |= {"num_key_value_heads": self.num_attention_heads, "moe_layer_freq": 1}
        return whole

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


# Fields that not every family has.
_SOME = frozenset((*LATENT, *EXPERTS, *INDEX, *GROUPED))


def preset_names() -> list[str]:
    """Return the names of the model shapes that come with leanseek."""
    folder = resources.files("leanseek") / "presets"
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json"))


def load_preset(name_or_path: str) -> ModelConfig:
    """Return the shape that a name or a config.json's path means.

    Raises:
        ConfigError: no such preset or file, or not a model that leanseek knows.
    """
    if name_or_path.endswith(".json") or "/" in name_or_path:
        return ModelConfig.from_file(name_or_path)
    if name_or_path not in preset_names():
        have = ", ".join(preset_names())
        raise ConfigError(
            f"model {name_or_path!r} is not known{nearest(name_or_path, preset_names())}; have {have}, "
            "or give the path of a config.json"
        )
    return ModelConfig.from_file(str(resources.files("leanseek") / "presets" / f"{name_or_path}.json"))


def _unknown(model_type: str) -> str:
    return f"model_type {model_type!r} is not known{nearest(model_type, FAMILIES)}; accepted: {', '.join(FAMILIES)}"


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
