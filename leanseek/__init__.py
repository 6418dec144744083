"""leanseek: small DeepSeek models, from nothing to a served reasoner. The only public names are these."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanseek.checkpoint.directory import load_model, save_model
    from leanseek.cost.planner import plan
    from leanseek.engine.engine import Engine
    from leanseek.engine.request import SamplingParams
    from leanseek.model.segments import Segments

__version__ = "0.1.0"
__all__ = ["Engine", "SamplingParams", "Segments", "load_model", "plan", "save_model"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import leanseek` does not load torch."""
    modules = {
        "Engine": "leanseek.engine.engine",
        "SamplingParams": "leanseek.engine.request",
        "Segments": "leanseek.model.segments",
        "load_model": "leanseek.checkpoint.directory",
        "plan": "leanseek.cost.planner",
        "save_model": "leanseek.checkpoint.directory",
    }
    if name not in modules:
        raise AttributeError(f"module 'leanseek' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(modules[name]), name)


def __dir__() -> list[str]:
    return __all__
