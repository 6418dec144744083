"""Sandbox: runs a checkpoint's Jinja template as the stranger's program it is, with a budget for all that it does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leanseek.errors import CheckpointError, UsageError

LONGEST_TEMPLATE = 1 << 18  # characters; the longest known to us have 20,000
BUDGET = 1 << 27  # characters made for one prompt, a step as many as STEP; what people say is not counted
STEP = 1 << 8  # so that half a million steps, a second or so, are the most
WIDEST = 1 << 16  # largest number that a template may hand to a function

_FILTERS = (
    "abs capitalize d default dictsort e escape first float int items last length count list lower map max min "
    "reject rejectattr reverse round safe select selectattr sort title trim unique upper"
).split()
_METHODS = frozenset(
    "capitalize count endswith find get index isalnum isalpha isdigit islower isspace istitle isupper items "
    "join keys lower lstrip removeprefix removesuffix replace rfind rindex rsplit rstrip split splitlines "
    "startswith strip swapcase title upper values".split()
)


class Spent(jinja2.TemplateError):
    """The template did more than a chat format needs."""


class _Code(CodeGenerator):
    """Compiles `a ~ b` so that its size is counted."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.budget = BUDGET
        self.finalize = self.shown
        kept = {name: self.filters[name] for name in _FILTERS}
        self.filters = {**kept, "join": self._join_filter, "string": self.shown, "replace": self._replaced}
        self.globals = {
            "namespace": self.globals["namespace"],
            "dict": dict,
            "range": self._range,
            "raise_exception": _raise,
        }

    def step(self, count: int = 0) -> None:
        """Take a step of a loop or into a function, which may write so many characters."""
        self.spend(STEP + count)

    def spend(self, count: int) -> None:
        """Take from the budget."""
        self.budget -= count
        if self.budget < 0:
            raise Spent("it makes more text, or takes more steps, than a chat format needs")

    def shown(self, value: Any) -> Any:
        """Return a value that can be printed; a list could be larger than it looks."""
        if isinstance(value, str):
            self.spend(len(value))
        elif not isinstance(value, bool | int | float | jinja2.Undefined | None):
            raise jinja2.TemplateRuntimeError(f"it prints a {type(value).__name__}; only text and numbers can be")
        elif isinstance(value, int) and value.bit_length() > 64:
            raise Spent("it prints a very large number")
        return value

    def joined(self, parts: Iterable[Any], between: str = "") -> str:
        """Return some values as one text."""
        texts = [str(self.shown(part)) for part in parts]
        self.spend(len(between) * len(texts) + len(texts))
        return between.join(texts)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of texts, lists and dictionaries only methods that make nothing much larger are there."""
        if isinstance(obj, str | bytes | list | tuple | Mapping) and callable(value) and attr not in _METHODS:
            return False
        return bool(super().is_safe_attribute(obj, attr, value))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, within bounds."""
        __self.step()
        if any(isinstance(one, int) and abs(one) > WIDEST for one in (*args, *kwargs.values())):
            raise Spent(f"it calls a function with a number above {WIDEST:,}")
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            __self.spend(len(owner))
            if name == "join":
                return __self.joined(args[0] if args else (), owner)
            if name == "replace":
                return __self._replaced(owner, *args)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute what can make something large."""
        sizes = [len(one) if hasattr(one, "__len__") else 0 for one in (left, right)]
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise Spent(f"the operator {operator} is not needed in a chat format")
        if operator == "*":
            numbers = [one for one in (left, right) if isinstance(one, int)]
            if any(abs(number) > WIDEST for number in numbers):
                raise Spent(f"it multiplies by a number above {WIDEST:,}")
            self.spend(max(sizes) * max(map(abs, numbers), default=1))
        else:
            self.spend(sum(sizes))
        return super().call_binop(context, operator, left, right)

    def _join_filter(self, values: Any, d: str = "", attribute: str | None = None) -> str:
        picked = (self.getitem(value, attribute) for value in values) if attribute else values
        return self.joined(picked, str(d))

    def _replaced(self, text: str, old: str, new: str, count: int = -1) -> str:
        text, old, new = str(text), str(old), str(new)
        self.spend(len(text) + text.count(old) * len(new))
        return text.replace(old, new, -1 if count is None else count)

    def _range(self, *ends: int) -> range:
        numbers = range(*ends)
        self.spend(len(numbers))
        return numbers


class Sandbox:
    """A template that can be rendered many times, one rendering at a time.

    Args:
        source: the template's text.
        filters: more filters, by name.
    Raises:
        CheckpointError: it is no template, or too long.
    """

    def __init__(self, source: str, filters: Mapping[str, Callable[..., Any]]) -> None:
        if len(source) > LONGEST_TEMPLATE:
            raise CheckpointError(
                f"the chat template has {len(source):,} characters; at most {LONGEST_TEMPLATE:,} are accepted"
            )
        self._environment = _Environment()
        self._environment.filters |= filters
        try:
            tree = self._environment.parse(source)
            _meter(tree)
            code = self._environment.compile(tree)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError) as error:
            raise CheckpointError(f"the chat template cannot be used ({_reason(error)}); {_WAY_OUT}") from None

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the template's text for some values.

        Raises:
            UsageError: the template refuses the conversation, breaks, or does more than it may.
        """
        self._environment.budget = BUDGET
        try:
            return "".join(self._template.generate(**values))
        except Exception as error:  # a stranger's program: it may raise anything
            raise UsageError(f"the model's chat template fails ({_reason(error)}); {_WAY_OUT}") from None

    def step(self) -> None:
        """Take a step from the budget of the rendering under way: for filters."""
        self._environment.step()

    def dumps(self, value: Any, **options: Any) -> str:
        """Return a value as JSON, as far as the budget goes."""
        parts = []
        for part in json.JSONEncoder(ensure_ascii=False, **options).iterencode(value):
            self._environment.spend(STEP + len(part))
            parts.append(part)
        return "".join(parts)


_WAY_OUT = "give the chat format by name, such as v31, to use one of leanseek's own"


def _meter(tree: nodes.Template) -> None:
    """Put a step of the budget into every loop and macro, its size that of the text inside."""
    blocks: Iterator[Any] = itertools.chain(
        *(tree.find_all(kind) for kind in (nodes.For, nodes.Macro, nodes.CallBlock))
    )
    for node in list(blocks):
        size = sum(len(text.data) for part in node.body for text in part.find_all(nodes.TemplateData))
        step = nodes.EnvironmentAttribute("step")
        node.body.insert(0, nodes.ExprStmt(nodes.Call(step, [nodes.Const(min(size, WIDEST))], [], None, None)))
        for new in node.body[0].find_all(nodes.Node):
            new.set_environment(tree.environment)
        node.body[0].set_lineno(node.lineno)


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateRuntimeError(str(message)[:200])


def _reason(error: BaseException) -> str:
    return str(error)[:300] or type(error).__name__
