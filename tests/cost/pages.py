"""What the tests of pages share: that they stand alone, and a browser that opens one."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.server.chromium import Browser

# Script that moves a slider, or chooses.
MOVE = "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
MOVE += "one.dispatchEvent(new Event(one.tagName === 'SELECT' ? 'change' : 'input'));"


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def check_alone(text: str, title: str) -> str:
    """See that a page asks nothing of the network and runs its own script alone; return its data.

    Args:
        text: the page.
        title: how its title is to stand there; as HTML would read it, it must not.
    """
    page = Parsed(text)
    assert page.open == [] and not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert f"<b>{title}" not in text and title in text and "url(" not in text and "//" not in page.scripts[0]
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert len(text) < 400_000
    return page.scripts[0]


@contextmanager
def opened(folder: Path, text: str) -> Iterator[Browser]:
    """Open a page in a real browser, from a file."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium and chromedriver are not installed")
    path = folder / "plan.html"
    path.write_text(text, encoding="utf-8")
    browser = Browser(folder)
    try:
        browser._call("POST", "/url", {"url": path.as_uri()})
        browser.until("window.leanseekPlan !== undefined")
        yield browser
    finally:
        browser.close()
