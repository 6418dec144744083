"""Hostile texts, messages full of them, and templates: what the tests of the chat formats draw from."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from leanseek.messages import Message, ToolCall
from leanseek.tokens.dsml import DSML
from leanseek.tokens.tokenizer import SPECIAL_TOKENS

# Laid out as the models' own are, in words of our own.
QWEN_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\n' }}
    {%- if messages and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}
    {{- 'Functions:\n' }}
    {%- for tool in tools %}{{ tool | tojson }}{{ '\n' }}{% endfor %}
    {{- 'Call one as <tool_call> JSON </tool_call>.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.reasoning_content and loop.last %}
            {{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' }}
        {%- endif %}
        {{- message.content.split('</think>')[-1].lstrip('\n') }}
        {%- for call in message.tool_calls or [] %}
            {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
            {{- (call.function.arguments | tojson) ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' ~ message.content ~ '\n</tool_response><|im_end|>\n' }}
    {%- elif not (tools and loop.first and message.role == 'system') %}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""
QWEN_TOKENS = {"<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "</tool_call>": False}
OPENING_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content | trim ~ eos_token }}{% endfor %}"
    "{{ '<|assistant|><think>\\n' }}"
)

SPECIALS = [*SPECIAL_TOKENS, *QWEN_TOKENS]
PIECES = [
    *SPECIALS,
    "<｜",
    "think>",
    "</",
    "<",
    f"<{DSML}function_calls>",
    f'<{DSML}invoke name="f">',
    f"</{DSML}parameter>",
    f"</{DSML}function_calls>",
    DSML,
    '{"name": "f", "arguments": {}}',
    "```json\n",
    "\n```",
    "User: ",
    "\n",
    "\n\n",
    " ",
    "\\",
    '"',
    '" string="true">',
    "12",
    "😀",
    "的",
    "e\u0301",
]
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=7).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=12
)
NAMES = st.sampled_from(["f", "get_weather", "a.b-c", "名", "invoke"])
VALUES = st.recursive(
    HOSTILE
    | st.integers(-(10**25), 10**25)
    | st.booleans()
    | st.none()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(HOSTILE, VALUES, max_size=4)
# As DSML spells them; and texts that are no objects, or no JSON.
ARGUMENTS = OBJECTS.map(lambda value: json.dumps(value, ensure_ascii=False))
ANY_ARGUMENTS = ARGUMENTS | OBJECTS.map(lambda value: json.dumps(value, indent=1)) | HOSTILE


def assistant(
    arguments: st.SearchStrategy[str], content: st.SearchStrategy[str] = HOSTILE
) -> st.SearchStrategy[Message]:
    """Return assistant messages with thinking or not, and up to three calls."""
    calls = st.lists(st.tuples(NAMES, arguments), max_size=3).map(
        lambda pairs: tuple(ToolCall(f"call_{i}", name, text) for i, (name, text) in enumerate(pairs))
    )
    return st.builds(Message, st.just("assistant"), content, st.none() | content, calls)
