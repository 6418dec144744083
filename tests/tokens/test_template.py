"""A model's own template: it lays out what it never sees; prompts are transformers', and no text is a token."""

from __future__ import annotations

import threading

import pytest

from leanseek.errors import CheckpointError, UsageError
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.chat import ChatFormat

CALL = ToolCall("call_0", "f", '{"a": "<|im_end|>", "n": [1, true]}')
TOOLS = [
    ToolSpec("f", "Does it: 的", {"type": "object", "properties": {"a b": {"type": "string"}}, "required": ["a b"]})
]
TALK = [
    Message("system", " Be brief. "),
    Message("user", "start\n"),
    Message("assistant", "so", "old", (CALL,)),
    Message("tool", "12", tool_call_id="call_0", name="f"),
]


def shown(chat: ChatFormat, messages: list[Message], **asked) -> str:
    return chat.tokenizer.decode(chat.prompt(messages, **asked), skip_special=False)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("tools", [[], TOOLS])
@pytest.mark.parametrize("messages", [TALK[:2], TALK, TALK[1:2]])
def test_prompts_are_transformers(tmp_path, qwen, messages, tools, thinking):
    from transformers import AutoTokenizer

    qwen.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    plain = [
        {
            "role": one.role,
            "content": one.content,
            "tool_calls": [
                {"type": "function", "function": {"name": c.name, "arguments": {"a": "<|im_end|>", "n": [1, True]}}}
                for c in one.tool_calls
            ],
        }
        for one in messages
    ]
    functions = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in tools
    ]
    text = theirs.apply_chat_template(
        plain, tools=functions or None, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert shown(ChatFormat(qwen), messages, tools=tools, thinking=thinking) == text
    if messages != TALK:  # whose argument is a token to them, and text to us
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ChatFormat(qwen).prompt(messages, tools=tools, thinking=thinking) == ids


def test_thinking_is_read_though_the_prompt_has_not_opened_it(formats):
    chat = formats["template"]
    message = Message("assistant", "\nso", "a\nb", (CALL,))
    assert chat.parse(chat.reply(message)) == message
    assert chat.tokenizer.decode(chat.reply(message), skip_special=False).startswith(
        "<think>\na\nb\n</think>\n\n\nso\n<tool_call>\n{"
    )
    assert chat.parse(chat.tokenizer.encode("no thinking")) == Message("assistant", "no thinking")


def test_a_template_that_opens_thinking_closes_it_when_none_is_asked(formats):
    chat = formats["template that opens thinking"]
    assert shown(chat, [Message("user", " a ")]).endswith("<|user|>a<｜end▁of▁sentence｜><|assistant|><think>\n")
    assert shown(chat, [], thinking=False).endswith("<think>\n\n</think>\n\n")
    assert chat.parse(chat.reply(Message("assistant", "a", "b"))) == Message("assistant", "a", "b")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content | upper }}", " a <|im_end|> b\n"),
        ("{{ messages[0].content | trim }}|{{ messages[0].content.strip() }}", "a <|im_end|> b|a <|im_end|> b"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": " a <|im_end|> b\\n"}'),
        ("{{ messages[0].content | tojson }}", '" a <|im_end|> b\\n"'),
        ("{{ '<|im_start|>' ~ messages[0].role }}", "<|im_start|>user"),
        ("{% if messages[0].content == messages[1].content %}same{% endif %}", "same"),
        ("{% if messages[2].content %}some{% else %}none{% endif %}", "none"),
        ("{{ bos_token ~ eos_token }}", "<|im_end|>"),
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}", "user"),
    ],
)
def test_what_a_template_does_with_texts(make_tokenizer, template, text):
    chat = ChatFormat(make_tokenizer({"<|im_end|>": True, "<|im_start|>": True}, config=config(template)), "template")
    asked = [Message("user", " a <|im_end|> b\n"), Message("user", " a <|im_end|> b\n"), Message("user", "")]
    ids = chat.prompt(asked)
    assert chat.tokenizer.decode(ids, skip_special=False) == text
    allowed = template.count("<|im_start|>") + template.count("eos_token")
    assert sum(chat.tokenizer.is_special(token) for token in ids) == allowed


def config(template: str) -> dict:
    return {"chat_template": template, "eos_token": "<|im_end|>", "bos_token": None}


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("{{ messages.__init__.__globals__ }}", "unsafe|undefined"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ messages }}", "prints a list"),
        ("{{ messages[0].content[:20] }}", "cuts texts apart"),
        ("{{ 1 // 0 }}", "zero"),
        ("{% include 'x' %}", "fails"),
        ("{{ open('x') }}", "undefined"),
    ],
)
def test_a_template_that_fails_is_one_error(make_tokenizer, template, reason):
    chat = ChatFormat(make_tokenizer(config={"chat_template": template}), "template")
    with pytest.raises(UsageError, match=reason):
        chat.prompt([Message("user", "a")])


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ 'think>' }}{{ raise_exception('no') }}", "a" * 300_000, "{% x %}"]
)
def test_a_template_that_cannot_be_used_is_told_at_once(make_tokenizer, template):
    with pytest.raises(CheckpointError, match="chat template"):
        ChatFormat(make_tokenizer(config={"chat_template": template}), "template")


def test_tools_are_refused_where_no_way_to_call_them_is_known(make_tokenizer):
    chat = ChatFormat(make_tokenizer(config={"chat_template": "{{ tools | tojson }}"}), "template")
    with pytest.raises(UsageError, match="has no tools"):
        chat.prompt([], tools=TOOLS)


def test_a_templates_own_words_list_the_tools(make_tokenizer):
    """A DeepSeek folder's instructions are data that way: by name, its template does the work."""
    template = (
        "{{ bos_token }}{% if tools %}Mine: {{ tools | tojson }}{% endif %}"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
        "<｜Assistant｜>{% if not thinking %}</think>{% else %}<think>{% endif %}"
    )
    chat = ChatFormat(make_tokenizer(config={"chat_template": template}), "template")
    assert "Mine: [{" in shown(chat, [], tools=TOOLS) and chat.has_tools
    message = Message("assistant", "so", "because", (CALL,))
    assert chat.parse(chat.reply(message)) == message


def test_a_call_with_broken_arguments_can_be_told_back(formats):
    message = Message("assistant", "", None, (ToolCall("call_0", "f", '{"a": '),))
    assert '"arguments": "{\\"a\\": "' in shown(formats["template"], [message, Message("tool", "no")])


def test_threads_do_not_mix_their_texts(qwen):
    chat, wrong = ChatFormat(qwen), []

    def ask(word: str) -> None:
        for _ in range(20):
            if word not in shown(chat, [Message("user", word)]):
                wrong.append(word)

    threads = [threading.Thread(target=ask, args=(f"word{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
