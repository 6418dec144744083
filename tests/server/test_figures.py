"""The figures under a reply of the chat page: tokens, rate, joules and money, while it comes and at its end."""

from __future__ import annotations

import re

import pytest


@pytest.mark.browser
def test_a_reply_streams_with_its_thinking_folded(browser, site):
    site.say("The answer is **42**.", "six times seven\nis 42", joules=1.25, usd=0.0000123)
    site.gate.clear()
    browser.run("document.getElementById('question').focus()")
    browser.keys("How much is it?", browser.ENTER)
    browser.until("document.querySelector('.thoughts')?.textContent.startsWith('six')")
    assert browser.value("document.getElementById('stop').hidden") is False
    assert browser.value("document.querySelector('.thinking').open") is False
    assert browser.text(".thinking summary").startswith(("Thinking…", "Thought for"))
    site.gate.set()
    browser.until("document.getElementById('stop').hidden")
    assert browser.text(".bubble") == "How much is it?"
    assert browser.text(".assistant .markdown") == "The answer is 42."
    assert browser.text(".assistant .markdown strong") == "42"
    thinking_tokens = site.usage["completion_tokens_details"]["reasoning_tokens"]
    assert re.fullmatch(rf"Thought for \d+\.\d s · {thinking_tokens} tokens", browser.text(".thinking summary"))
    figures = " ".join(browser.texts(".assistant .figures span"))
    assert re.fullmatch(
        rf"{len(site.pieces)} tokens \d+ tokens/s \d+\.\d s 1\.25 J \$0\.000012 prompt 58, 32 cached", figures
    )
    browser.click(".thinking summary")
    assert browser.value("document.querySelector('.thinking').open")
    assert browser.text(".thoughts") == "six times seven\nis 42"
    assert browser.text("#announcer") == "Reply: The answer is 42."
    (asked,) = site.asked
    assert asked["messages"] == [{"role": "user", "content": "How much is it?"}]
    assert asked["thinking"] == {"type": "enabled"} and asked["stream_options"] == {
        "include_usage": True,
        "continuous_usage_stats": True,
    }
    assert not {"temperature", "top_p", "max_tokens", "seed", "reasoning_effort", "model"} & set(asked)


@pytest.mark.browser
def test_rate_joules_and_cost_are_told_while_a_reply_comes(browser, site):
    site.live = True
    site.say("one two three four five six seven eight nine ten", joules=12.5, usd=0.25)
    site.gate.clear()
    browser.run("document.getElementById('question').focus()")
    browser.keys("Count", browser.ENTER)
    half = len(site.pieces) // 2
    figures = "document.querySelector('.assistant .figures')?.innerText ?? ''"
    browser.until(f"({figures}).startsWith('{half} tokens')")
    told = browser.texts(".assistant .figures span")
    assert browser.value("document.getElementById('stop').hidden") is False
    assert re.fullmatch(r"[\d,.]+ tokens/s", told[1]) and told[3:5] == [f"{half} J", f"${0.01 * half:.3f}"]
    site.gate.set()
    browser.until("document.getElementById('stop').hidden")
    assert browser.texts(".assistant .figures span")[3:5] == ["12.5 J", "$0.25"]
    assert browser.text("#total") == "12.5 J · $0.25"
