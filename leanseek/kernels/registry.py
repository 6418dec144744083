"""Registry: the implementations of every op; one is chosen per process, and the registry can say which and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from leanseek import variables
from leanseek.errors import ConfigError
from leanseek.kernels import native

Function = TypeVar("Function", bound=Callable[..., Any])
REFERENCE = "reference"


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op.

    Args:
        op: its name, which is its reference's without `_reference`.
        name: "reference", or what it needs.
        device: "cpu" or "cuda"; "any" for references.
        needs: what must be there: an instruction set of `native.VARIANTS`.
        rank: of those that can be used the highest is taken.
        function: takes the reference's arguments. What it may be given besides (types, strides, gradients) the op's
            public function knows.
    """

    op: str
    name: str
    device: str
    needs: tuple[str, ...]
    rank: int
    function: Callable[..., Any]

    @property
    def missing(self) -> str:
        """Why it cannot be used here; an empty text if it can."""
        return next((reason for need in self.needs if (reason := native.missing(need))), "")


@dataclass(frozen=True)
class Choice:
    """What was chosen for an op.

    Args:
        implementation: that is used.
        reason: in words.
    """

    implementation: Implementation
    reason: str


_REGISTERED: list[Implementation] = []


def reference(op: str) -> Callable[[Function], Function]:
    """Register a function as what defines an op."""

    def register(function: Function) -> Function:
        _REGISTERED.append(Implementation(op, REFERENCE, "any", (), 0, function))
        return function

    return register


def implementation(
    op: str, *, device: str = "cpu", needs: tuple[str, ...], rank: int
) -> Callable[[Function], Function]:
    """Register a function as a way to compute an op; arguments as of `Implementation`."""

    def register(function: Function) -> Function:
        _REGISTERED.append(Implementation(op, "+".join(needs), device, needs, rank, function))
        return function

    return register


def native_implementation(op: str) -> Callable[[Function], Function]:
    """Register a function that calls the compiled library: once for each instruction set, its first argument."""

    def register(function: Function) -> Function:
        for rank, variant in enumerate(native.VARIANTS, 1):
            bound = _bound(function, variant)
            _REGISTERED.append(Implementation(op, variant, "cpu", (variant,), rank, bound))
        return function

    return register


def implementations(op: str | None = None) -> list[Implementation]:
    """Return what is registered, of one op or of all."""
    return [one for one in _REGISTERED if op in (None, one.op)]


@cache
def choose(op: str, device: str = "cpu") -> Choice:
    """Choose an op's implementation, once per process.

    Raises:
        ConfigError: LEANSEEK_KERNELS asks for one that is not to be had.
    """
    mode = variables.kernels()
    known = implementations(op)
    plain = next(one for one in known if one.name == REFERENCE)
    others = [one for one in known if one.device == device and one.name != REFERENCE]
    usable = sorted((one for one in others if not one.missing), key=lambda one: one.rank, reverse=True)
    if mode == REFERENCE:
        return Choice(plain, "LEANSEEK_KERNELS = reference")
    if not others:
        return Choice(plain, f"there is no other for {device}")
    if mode in native.VARIANTS:
        if device == "cpu" and (reason := native.missing(mode)):
            raise ConfigError(f"LEANSEEK_KERNELS = {mode}: {reason}")
        asked = [one for one in usable if one.name == mode]
        return Choice(asked[0], f"LEANSEEK_KERNELS = {mode}") if asked else Choice(plain, f"{mode} has none")
    if usable:
        best = usable[0]
        worse = [one.name for one in usable[1:]]
        return Choice(best, f"the best of {', '.join([best.name, *worse])}")
    reason = others[-1].missing
    if mode == "native":
        raise ConfigError(f"LEANSEEK_KERNELS = native, but {op} has no native kernel here: {reason}")
    return Choice(plain, reason)


def chosen(op: str, device: str = "cpu") -> Callable[..., Any] | None:
    """Return the function that takes the place of an op's reference; None: there is none to take it."""
    picked = choose(op, device).implementation
    return None if picked.name == REFERENCE else picked.function


def report(device: str = "cpu") -> list[Choice]:
    """Return what is chosen for every op, in the order of their names."""
    return [choose(op, device) for op in sorted({one.op for one in _REGISTERED})]


def kernels_named(device: str = "cpu") -> str:
    """Return the names of all that is chosen, each once: results of other kernels have other bits."""
    return "+".join(sorted({choice.implementation.name for choice in report(device)}))


def notice() -> str:
    """Return a line for people about what runs on the reference and need not; an empty text if nothing does."""
    if variables.kernels() == REFERENCE or native.native().library is not None:
        return ""
    ops = sorted({one.op for one in _REGISTERED if one.name in native.VARIANTS})
    return f"{', '.join(ops)} run in plain torch, which is slower: {native.native().reason}"


def _bound(function: Callable[..., Any], variant: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return function(variant, *arguments, **named)

    return call
