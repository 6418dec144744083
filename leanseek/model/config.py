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

FAMILIES = ("deepseek_v3",)


@dataclass(frozen=True)
class ModelConfig:
    """A DeepSeek-V3 model's shape; every field has the name that it has in Hugging Face's config.json.

    Keys of the file that are not fields here are kept in `extra` and written back unchanged.

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
        q_lora_rank: rank of the query latent (Q); None: queries come straight from the hidden state.
        kv_lora_rank: rank of the key-value latent (L), the part of a token that is cached.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: per-head widths N, R, V.
        rope_scaling: None, or YaRN's fields (type/rope_type "yarn", factor, beta_fast, beta_slow,
            mscale, mscale_all_dim, original_max_position_embeddings).
        num_nextn_predict_layers: MTP depth, 0 or 1.
    Raises:
        ConfigError: a value that no DeepSeek model can have.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    first_k_dense_replace: int
    intermediate_size: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    num_attention_heads: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
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
    bos_token_id: int = 0
    eos_token_id: int = 1
    initializer_range: float = 0.02
    model_type: str = "deepseek_v3"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no model of the family can be."""
        if self.model_type not in FAMILIES:
            raise ConfigError(
                f"model_type {self.model_type!r} is not known{nearest(self.model_type, FAMILIES)}; "
                f"accepted: {', '.join(FAMILIES)}"
            )
        for name in (
            "vocab_size hidden_size num_hidden_layers num_attention_heads kv_lora_rank qk_nope_head_dim "
            "qk_rope_head_dim v_head_dim intermediate_size moe_intermediate_size n_routed_experts "
            "num_experts_per_tok n_group topk_group max_position_embeddings"
        ).split():
            value = getattr(self, name)
            if not _is_whole(value, 1):
                raise ConfigError(f"{name} = {value!r}: a positive whole number is needed")
        if self.q_lora_rank is not None and not _is_whole(self.q_lora_rank, 1):
            raise ConfigError(f"q_lora_rank = {self.q_lora_rank!r}: a positive whole number or null is needed")
        for name in ("first_k_dense_replace", "n_shared_experts", "bos_token_id", "eos_token_id"):
            if not _is_whole(getattr(self, name), 0):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: a whole number from 0 is needed")
        for name in ("rms_norm_eps", "rope_theta", "routed_scaling_factor", "initializer_range"):
            if not _is_positive(getattr(self, name)):
                raise ConfigError(f"{name} = {getattr(self, name)!r}: a number above 0 is needed")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim = {self.qk_rope_head_dim}: rope turns pairs, so it must be even")
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
        if self.num_nextn_predict_layers not in (0, 1):
            raise ConfigError(f"num_nextn_predict_layers = {self.num_nextn_predict_layers}: 0 or 1 is supported")
        accepted: tuple[tuple[str, Any], ...] = (
            ("scoring_func", "sigmoid"),
            ("topk_method", "noaux_tc"),
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("tie_word_embeddings", False),
        )
        for name, only in accepted:
            if getattr(self, name) != only:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: {self.model_type} models have {only!r}")
        if self.rope_scaling is not None:
            if not isinstance(self.rope_scaling, Mapping):
                raise ConfigError(f"rope_scaling = {self.rope_scaling!r}: YaRN's fields or null are needed")
            kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type"))
            if kind not in ("yarn", "default", None):
                raise ConfigError(f"rope_scaling.type = {kind!r}: 'yarn' is accepted")
            factor = self.rope_scaling.get("factor")
            if kind == "yarn" and not (_is_positive(factor) and factor >= 1):
                raise ConfigError(f"rope_scaling.factor = {factor!r}: a number from 1 is needed")

    @property
    def qk_head_dim(self) -> int:
        """Width of one head's query and key, N + R."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Numbers that one layer caches per token, L + R."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def yarn(self) -> Mapping[str, Any] | None:
        """The YaRN fields, or None where positions are not stretched."""
        scaling = self.rope_scaling
        if scaling is None or scaling.get("rope_type", scaling.get("type")) != "yarn":
            return None
        return scaling

    def is_moe(self, layer: int) -> bool:
        """Whether layer `layer` (counted from 0, the MTP layer last) has routed experts."""
        return layer >= self.first_k_dense_replace

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
        names = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        needed = {
            f.name
            for f in dataclasses.fields(cls)
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        }
        if "model_type" in values and values["model_type"] not in FAMILIES:
            kind = str(values["model_type"])
            raise ConfigError(
                f"{where}: model_type {kind!r} is not known{nearest(kind, FAMILIES)}; accepted: {', '.join(FAMILIES)}"
            )
        missing = sorted(needed - values.keys())
        if missing:
            raise ConfigError(f"{where}: missing {', '.join(missing)}")
        # Derived here, so they are not kept; but a file that means something else by them is not such a model.
        for name, only in (("num_key_value_heads", values["num_attention_heads"]), ("moe_layer_freq", 1)):
            if (value := values.pop(name, None)) not in (None, only):
                raise ConfigError(f"{where}: {name} = {value!r}: {FAMILIES[0]} models have {only!r}")
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
        """Return config.json's content, unknown keys included, as DeepSeek's own files spell it."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "extra"}
        if values["rope_scaling"] is not None:
            values["rope_scaling"] = dict(values["rope_scaling"])
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            **dict(self.extra),
            **values,
            "num_key_value_heads": self.num_attention_heads,
            "moe_layer_freq": 1,
        }

    def replace(self, **changes: Any) -> ModelConfig:
        """Return a copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


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


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
