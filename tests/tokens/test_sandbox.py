"""The sandbox: nothing gets out, and nothing takes much, whatever a template tries."""

from __future__ import annotations

import time

import pytest

from leanseek.errors import CheckpointError, LeanseekError, UsageError
from leanseek.tokens.sandbox import LONGEST_TEMPLATE, Sandbox

DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor %}{{ ns.x }}"


@pytest.mark.parametrize(
    "template",
    [
        DOUBLE.replace("EXPRESSION", "ns.x ~ ns.x"),
        DOUBLE.replace("EXPRESSION", "ns.x + ns.x"),
        DOUBLE.replace("EXPRESSION", "ns.x * 9000"),
        DOUBLE.replace("EXPRESSION", "[ns.x, ns.x] | join"),
        DOUBLE.replace("EXPRESSION", "''.join([ns.x, ns.x])"),
        DOUBLE.replace("EXPRESSION", "ns.x.replace('a', ns.x)"),
        DOUBLE.replace("EXPRESSION", "ns.x | replace('a', ns.x)"),
        DOUBLE.replace("'ab'", "['a']").replace("EXPRESSION", "ns.x + ns.x"),
        DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]"),
        DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x | string }}"),
        DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x | tojson }}"),
        DOUBLE.replace("EXPRESSION", "[ns.x, ns.x]").replace("{{ ns.x }}", "{{ ns.x ~ '' }}"),
        "{{ 'a' * 10 ** 9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a' | indent(1000000000) }}",
        "{% set x = range(50000) | list %}" + "{% for i in x %}" * 4 + "{% endfor %}" * 4,
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(60000) %}" + "a" * 60000 + "{% endfor %}",
        "{% set x %}{% for i in range(60000) %}" + "a" * 60000 + "{% endfor %}{% endset %}",
        "{% macro f(n) %}{{ f(n - 1) if n else '' }}{{ f(n - 1) if n else '' }}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_wants_too_much_is_stopped_soon(template):
    start = time.monotonic()
    with pytest.raises(LeanseekError, match=r"chat template (fails|cannot be used)"):
        sandbox = Sandbox(template, {"tojson": lambda value: sandbox.dumps(value)})
        sandbox.render({})
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "template",
    [
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ range.__self__.x }}",
        "{{ x.pop() }}",
        "{{ (x | map(attribute='__class__') | list)[0].mro() }}",
        "{{ environment.filters }}",
        "{{ config.items() }}",
        "{% import 'os' as os %}",
        "{{ ''.encode }}{{ ''.encode('utf-8') }}",
    ],
)
def test_nothing_gets_out(template):
    with pytest.raises(UsageError, match="chat template fails"):
        print(Sandbox(template, {}).render({"x": ["a"]}))


def test_ordinary_templates_work():
    template = (
        "{% macro one(m) %}[{{ m.role }}]{% endmacro %}"
        "{% for m in messages[1:] %}{{ one(m) }}"
        "{{ m.content.strip().split('-')[0] | upper }}{{ loop.index }}{% endfor %}"
        "{{ messages | length }}{{ messages | map(attribute='role') | join(', ') }}{{ 7 % 4 }}{{ 2 * 3 }}"
        "{{ 'ab'.replace('a', 'c') }}{{ ['x', 'y'] | last }}{{ none is none }}{{ missing is defined }}{{ 1.5 }}"
    )
    messages = [{"role": "a", "content": "x"}, {"role": "b", "content": " y-z "}]
    assert Sandbox(template, {}).render({"messages": messages}) == "[b]Y12a, b36cbyTrueFalse1.5"


def test_a_rendering_does_not_eat_the_next_ones_budget():
    sandbox = Sandbox("{% for i in range(60000) %}" + "a" * 300 + "{% endfor %}", {})
    assert {len(sandbox.render({})) for _ in range(5)} == {18_000_000}


@pytest.mark.parametrize(
    "template", ["{% for %}", "{{ 'a' | nonsense }}", "a" * (LONGEST_TEMPLATE + 1), "{{" + "(" * 900]
)
def test_what_is_no_template_is_told_when_it_is_read(template):
    with pytest.raises(CheckpointError, match="chat template"):
        Sandbox(template, {})
