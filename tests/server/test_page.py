"""The chat page: what is served of it, what stands in its files, and what it does in a real browser."""

from __future__ import annotations

import hashlib
import json
import re
import time
from importlib import resources
from pathlib import Path

import pytest
from starlette.requests import Request

from leanseek.engine.engine import Engine
from leanseek.server.app import Served
from leanseek.server.listener import Listener
from leanseek.server.page import Page

WEB = Path(str(resources.files("leanseek.server") / "web"))
OWN = sorted(path for path in WEB.iterdir() if path.is_file())
MOST_BYTES = 1_500_000


# What is served


@pytest.fixture(scope="module")
def page() -> Page:
    return Page()


def request(path, **headers):
    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": fields}
    return Request({**scope, "server": ("127.0.0.1", 80), "scheme": "http"})


def test_each_path_has_its_file(page):
    assert page.paths[0] == "/"
    assert page.find("/").body == page.find("/index.html").body == (WEB / "index.html").read_bytes()
    for path in OWN:
        assert page.find(f"/{path.name}").body == path.read_bytes()
    assert page.find("/vendor/katex/fonts/KaTeX_Main-Regular.woff2").media_type == "font/woff2"
    assert page.find("/app.js").media_type.startswith("text/javascript")
    assert page.find("/style.css").media_type.startswith("text/css")
    assert page.find("/icon.svg").media_type == "image/svg+xml"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/nothing.js",
        "/../page.py",
        "/vendor/../../page.py",
        "/vendor/..%2f..%2fpage.py",
        "/..\\page.py",
        "//index.html",
        "/./index.html",
        "/vendor",
        "/vendor/",
        "/vendor/README.md",
        "/vendor/SHA256SUMS",
        "/index.html/",
        "/index.html\x00",
        "/etc/passwd",
    ],
)
def test_nothing_else_is_served(page, path):
    assert page.find(path) is None
    assert page.respond(request(path)) is None


def test_hidden_and_unknown_files_of_a_folder_stay_there(tmp_path):
    for name in ("index.html", ".secret.html", "notes.txt", "key.pem", "plain"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert Page(tmp_path).paths == ("/", "/index.html")


def test_the_policy_lets_only_this_servers_files_in(page):
    for path in page.paths:
        headers = page.find(path).headers
        rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == rules["frame-ancestors"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == rules["font-src"] == "'self'"
        assert (rules["require-trusted-types-for"], rules["trusted-types"]) == ("'script'", "'none'")
        assert (
            "unsafe" not in str(rules)
            and "*" not in str(rules)
            and ":" not in str(rules).replace("data:", "").replace("':", "")
        )
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


def test_a_browser_that_has_a_file_is_told_so(page, tmp_path):
    first = page.respond(request("/app.js"))
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    assert int(first.headers["content-length"]) == len(first.body)
    for known in (first.headers["etag"], f"W/{first.headers['etag']}", f'"other", {first.headers["etag"]}'):
        again = page.respond(request("/app.js", if_none_match=known))
        assert (again.status_code, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert page.respond(request("/app.js", if_none_match='"other"')).status_code == 200
    for text in ("one", "two"):
        (tmp_path / "index.html").write_text(text, encoding="utf-8")
        assert Page(tmp_path).find("/").headers["etag"] not in (first.headers["etag"], known)
        known = Page(tmp_path).find("/").headers["etag"]


# What stands in the files


def test_vendored_files_are_as_published():
    vendor = WEB / "vendor"
    pinned = dict(reversed(line.split()) for line in (vendor / "SHA256SUMS").read_text(encoding="utf-8").splitlines())
    files = {str(path.relative_to(vendor)) for path in vendor.rglob("*") if path.is_file()}
    assert files - {"README.md", "SHA256SUMS"} == set(pinned)
    for name, digest in pinned.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest, name
    for name in ("marked.LICENSE", "katex/LICENSE", "katex/fonts/LICENSE", "highlight/LICENSE"):
        assert "Copyright" in (vendor / name).read_text(encoding="utf-8")


def test_the_page_is_small():
    assert sum(path.stat().st_size for path in WEB.rglob("*") if path.is_file()) < MOST_BYTES
    assert sum(path.stat().st_size for path in OWN) < 150_000


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.name)
def test_nothing_is_fetched_from_elsewhere(path):
    text = path.read_text(encoding="utf-8").replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"(https?:)?//[\w-]+\.\w", text)
    assert "@import" not in text and "url(" not in text


@pytest.mark.parametrize("path", [path for path in OWN if path.suffix in (".js", ".html")], ids=lambda path: path.name)
def test_no_text_becomes_markup_or_code(path):
    text = path.read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc", "eval("):
        assert forbidden not in text
    assert "new Function" not in text and "javascript:alert" not in text
    if path.suffix == ".html":
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]* src=)", text)


def test_what_files_name_is_there(page):
    for path in OWN:
        text = path.read_text(encoding="utf-8")
        pattern = r'(?:src|href)="([^"#]+)"' if path.suffix == ".html" else r'(?:from|import\() ?["`]\./([^"`]+)["`]'
        for name in re.findall(pattern, text):
            assert "$" in name or page.find(f"/{name}"), f"{path.name} names {name}"
    grammars = re.search(r"GRAMMARS = \{(.*?)\}", (WEB / "code.js").read_text(encoding="utf-8"), re.DOTALL)[1]
    names = set(re.findall(r"(\w+):", grammars))
    assert names == {path.name.split(".")[0] for path in (WEB / "vendor" / "highlight").glob("*.js")} - {"core"}
    fonts = re.findall(
        r"url\((fonts/[\w-]+\.woff2)\)", (WEB / "vendor/katex/katex.min.css").read_text(encoding="utf-8")
    )
    assert fonts and all(page.find(f"/vendor/katex/{name}") for name in fonts)


def test_every_field_has_a_name_for_readers():
    text = (WEB / "index.html").read_text(encoding="utf-8")
    for tag in re.findall(r"<(?:input|textarea|select|progress)\b[^>]*>", text):
        before = text[: text.index(tag)]
        inside_label = before.rfind("<label") > before.rfind("</label>")
        assert inside_label or "aria-label=" in tag or "hidden" in tag, tag
    for tag, inside in re.findall(r"(<button\b[^>]*>)(.*?)</button>", text, re.DOTALL):
        assert "aria-label=" in tag or inside.strip() or 'id="theme"' in tag, tag


# What it does in a browser


@pytest.mark.browser
def test_escape_stops_a_reply_and_the_server_sees_it(browser, site):
    site.say("one two three four five six seven eight nine ten")
    site.gate.clear()
    browser.run("document.getElementById('question').focus()")
    browser.keys("Count", browser.ENTER)
    browser.until("document.querySelector('.assistant .markdown')?.textContent.startsWith('one')")
    browser.keys(browser.ESCAPE)
    browser.until("document.getElementById('stop').hidden")
    assert browser.text(".assistant .ending") == "Stopped."
    assert browser.text(".assistant .markdown").startswith("one")
    end = time.monotonic() + 5
    while not site.closed and time.monotonic() < end:
        time.sleep(0.02)
    assert site.closed == 1


HOSTILE = """\
<img src=x onerror=alert(1)> and <b onclick="alert(2)">bold</b>

<script>document.title = "taken"</script>

</script></style><svg onload=alert(3)>

[press](javascript:alert(4)) [press](JaVaScRiPt:alert(5)) [data](data:text/html,<script>alert(6)</script>)
[fine](https://example.org/?a=1&b=2) <javascript:alert(7)> ![picture](https://example.org/x.png "t")

<iframe src="https://example.org"></iframe> &lt;i&gt; &#60;script&#62;

```html
<img src=x onerror=alert(8)></code></pre><script>alert(9)</script>
```

| <img src=x onerror=alert(10)> | b |
|---|---|
| `<script>` | <form action=x><input name=y> |

$\\href{javascript:alert(11)}{x}$ $\\includegraphics{https://example.org/y.png}$ $\\htmlStyle{color:red}{x}$
"""


@pytest.mark.browser
def test_hostile_markdown_stays_text(browser, site):
    site.say(HOSTILE, HOSTILE, size=11, calls=[{"index": 0, "function": {"name": HOSTILE, "arguments": HOSTILE}}])
    browser.send("<img src=x onerror=alert(0)>")
    browser.until("document.querySelectorAll('.hl-tag').length > 0")
    assert browser.value("document.title") != "taken"
    made = browser.run(
        "return [...document.querySelectorAll('#log *')].map((one) => [one.localName, one.getAttributeNames()])"
    )
    tags = {tag for tag, _ in made}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "style", "link", "base", "video"}
    assert not {name for _, names in made for name in names if name.startswith("on") or name in ("src", "srcdoc")}
    links = browser.run("return [...document.querySelectorAll('#log a')].map((one) => [one.href, one.rel, one.target])")
    assert links == [
        ["https://example.org/?a=1&b=2", "noopener noreferrer", "_blank"],
        ["https://example.org/x.png", "noopener noreferrer", "_blank"],
    ]
    text = browser.text(".assistant .markdown")
    for shown in (
        '<b onclick="alert(2)">bold</b>',
        '<script>document.title = "taken"</script>',
        "</script></style><svg onload=alert(3)>",
        "[press](javascript:alert(4))",
        "<i> <script>",
        "<form action=x><input name=y>",
    ):
        assert shown in text
    assert browser.text(".thoughts") is not None and browser.text(".bubble") == "<img src=x onerror=alert(0)>"
    title = browser.text("#conversations .open")
    assert title == "<img src=x onerror=alert(0)>"


RICH = """\
# Title
Text with `code`, *emphasis* and a formula $e^{i\\pi} + 1 = 0$; it costs $5 or $6.

$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}, \\quad \\vec{v}, \\widehat{abc}, \\boxed{x}, \\cancel{y}$$

\\[ \\begin{pmatrix} a & b \\\\ c & d \\\\ e & f \\\\ g & h \\\\ i & j \\end{pmatrix}
\\color{red}{z} \\phase{-78^\\circ} \\pmb{w} \\]

and \\(x_1\\), broken: $\\frac{1$ and $\\undefined{x}$

```python
def square(x: int) -> int:
    return x ** 2  # a comment
```

1. one
2. two
   - inside
- [x] done

| name | value |
|:--|--:|
| a | 1 |
"""


@pytest.mark.browser
def test_markdown_maths_and_code_are_drawn(browser, site):
    site.say(RICH)
    browser.send("Show me")
    browser.until("document.querySelectorAll('.tex.drawn').length === 4 && document.querySelector('.hl-keyword')")
    assert browser.texts(".markdown h3") == ["Title"]
    assert "it costs $5 or $6." in browser.text(".markdown p")
    assert browser.value("document.querySelectorAll('.tex.display .katex-display').length") == 2
    assert browser.texts(".tex:not(.drawn)") == ["\\frac{1", "\\undefined{x}"]
    assert browser.texts(".code pre")[0].startswith("def square(x: int) -> int:\n    return x ** 2")
    assert browser.text(".code-bar span") == "python"
    assert browser.value("document.querySelector('.task input').checked")
    assert browser.value("getComputedStyle(document.querySelector('td.to-right')).textAlign") == "right"
    # The fonts are this server's.
    loaded = "[...document.fonts].filter((font) => font.status === 'loaded').map((font) => font.family)"
    browser.until(f"{loaded}.includes('KaTeX_Main')")
    urls = browser.value("performance.getEntriesByType('resource').map((one) => one.name)")
    assert urls and all(url.startswith(site.url) for url in urls)


GROWING = """
const { MarkdownView } = await import('/markdown.js');
const [text, pieces] = arguments;
const whole = document.createElement('div');
new MarkdownView(whole).show(text, true);
// Formulas and colours come later; from then on both are drawn at once.
while (whole.querySelectorAll('.drawn').length < 2 || !whole.querySelector('.hl-tag, .hl-keyword'))
  await new Promise((go) => setTimeout(go, 20));
new MarkdownView(whole).show(text, true);
return pieces.map((size) => {
  const grown = document.createElement('div');
  const view = new MarkdownView(grown);
  for (let end = size; end < text.length + size; end += size) view.show(text.slice(0, end));
  return grown.isEqualNode(whole);
});
"""


@pytest.mark.browser
def test_a_text_that_grew_looks_like_one_that_was_there_at_once(browser):
    nested = (
        "\n\n- a\n\n  b\n- c\n\n      d\n\n> e\nf\n\nSetext\n===\n\n* * *\n1) g\n\n\n   h\n\n`` ` ``\n\n~~~\n```\n~~~\n"
    )
    for text in (RICH + nested, HOSTILE + RICH, nested * 3 + RICH):
        assert browser.run(GROWING, text, [1, 3, 10]) == [True, True, True]


@pytest.mark.browser
def test_a_conversation_survives_a_reload_and_has_branches(browser, site):
    site.say("first reply", "some thought")
    browser.send("first question")
    site.say("second reply")
    browser.click(".assistant [data-act=retry]")
    browser.until("document.querySelector('.assistant .markdown')?.innerText === 'second reply'")
    browser.until("document.getElementById('stop').hidden")
    assert browser.text(".assistant .place") == "2/2"
    browser.send("a further question")
    assert [m["content"] for m in site.asked[-1]["messages"]] == [
        "first question",
        "second reply",
        "a further question",
    ]
    # Back to the first version: what followed the second is not there.
    browser.click(".assistant [data-act=back]")
    assert browser.texts(".markdown") == ["first reply"]
    assert browser.value("document.activeElement.dataset.act ?? document.activeElement.dataset.turn")
    browser.reload()
    assert browser.texts(".bubble") == ["first question"] and browser.texts(".markdown") == ["first reply"]
    assert browser.text(".assistant .place") == "1/2"
    # On the keyboard: up from the empty field to the reply, right to its other version.
    browser.keys(browser.UP, browser.RIGHT)
    assert browser.text(".assistant .place") == "2/2"
    assert browser.texts(".markdown") == ["second reply", "second reply"]
    browser.keys(browser.LEFT)
    assert browser.texts(".markdown") == ["first reply"]
    browser.click(".assistant [data-act=forth]")
    assert browser.text("#announcer") == "Reply, version 2 of 2"
    # Editing the question makes a branch of its own.
    browser.click(".user [data-act=edit]")
    browser.keys(" better", browser.ENTER)
    browser.until("document.querySelector('.bubble')?.innerText === 'first question better'")
    browser.until("document.getElementById('stop').hidden")
    assert browser.text(".user .place") == "2/2" and len(browser.texts(".turn")) == 2


@pytest.mark.browser
def test_several_conversations_are_kept_named_exported_and_deleted(browser, site):
    browser.send("about cats")
    browser.keys(browser.CONTROL + "k")
    assert browser.texts(".turn") == []
    browser.send("about dogs")
    assert browser.texts("#conversations .open") == ["about dogs", "about cats"]
    browser.run("document.querySelectorAll('#conversations .open')[1].click()")
    assert browser.texts(".bubble") == ["about cats"] and browser.text("#title") == "about cats"
    browser.click("#conversations li.current .item-tools button")
    browser.keys("lions", browser.ENTER)
    assert browser.text("#title") == "lions" and "lions" in browser.texts("#conversations .open")
    # Out and in again, by way of the module that the page uses.
    script = "const { Store } = await import('/store.js'); const store = new Store(() => {});"
    exported = browser.run(f"{script} return store.exportText(store.list().map(({{ id }}) => store.load(id)))")
    assert json.loads(exported)["format"] == "leanseek-conversations"
    assert browser.run(f"{script} return store.importText(arguments[0])", exported) == 2
    for broken in ("", "[]", '{"format": "leanseek-conversations", "conversations": [{"turns": [{"id": "x"}]}]}'):
        said = browser.run(
            f"{script} try {{ store.importText(arguments[0]) }} catch (e) {{ return e.message }}", broken
        )
        assert said
    browser.reload()
    assert sorted(browser.texts("#conversations .open")) == ["about dogs", "about dogs", "lions", "lions"]
    browser.click("#conversations li.current .item-tools button:last-child")
    assert len(browser.texts("#conversations .open")) == 3 and browser.texts(".turn") == []
    browser.click("#toast button")
    assert len(browser.texts("#conversations .open")) == 4 and browser.texts(".bubble") == ["about cats"]


@pytest.mark.browser
def test_settings_are_sent_and_kept(browser, site):
    browser.click("#open-settings")
    wanted = {"system": "Be short.", "temperature": "0.5", "top_p": "0.9", "max_tokens": "64", "seed": "7"}
    wanted |= {"top_k": "40", "min_p": "0.05", "frequency_penalty": "-0.5", "presence_penalty": "0.25"}
    wanted |= {"repetition_penalty": "1.1"}
    browser.click("#settings .more summary")
    for name, value in wanted.items():
        browser.run("document.querySelector(`#settings [name=${arguments[0]}]`).focus()", name)
        browser.keys(value)
    browser.click("#close-settings")
    assert browser.value("document.getElementById('settings').open") is False
    browser.run(
        "const field = document.querySelector('#composer [name=effort]'); field.value = 'max';"
        "field.dispatchEvent(new Event('change'))"
    )
    browser.reload()
    browser.send("Hello")
    asked = site.asked[-1]
    assert asked["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 64, "seed": 7, "reasoning_effort": "max"}
    sampling |= {"top_k": 40, "min_p": 0.05, "frequency_penalty": -0.5, "presence_penalty": 0.25}
    sampling |= {"repetition_penalty": 1.1}
    assert sampling.items() <= asked.items()
    browser.click("#composer [name=thinking]")
    browser.send("Again")
    assert site.asked[-1]["thinking"] == {"type": "disabled"} and "reasoning_effort" not in site.asked[-1]


@pytest.mark.browser
def test_failures_are_sentences_that_can_be_tried_again(chromium, site):
    chromium.resize(1200, 860)
    chromium.open(site.url)
    site.say("there you are")
    site.key = "secret"
    chromium.send("Hello")
    assert chromium.text(".failure p") == "This server wants an API key."
    chromium.until("document.activeElement.name === 'key'")
    chromium.keys("secret", chromium.ENTER)
    chromium.until("document.querySelector('.assistant .markdown')?.innerText === 'there you are'")
    assert chromium.value("JSON.stringify(localStorage).includes('secret')") is False
    site.refusals = [(429, "too many requests are under way")]
    chromium.send("More")
    assert chromium.text(".failure:not([hidden]) p") == "Too many requests are under way."
    chromium.click(".failure:not([hidden]) button")
    chromium.until("document.querySelectorAll('.markdown')[1]?.innerText === 'there you are'")
    assert chromium.texts(".place") == []
    # The only complaints are the browser's own about the two statuses.
    assert all(re.search("status of 4(01|29)", line) for line in chromium.complaints())


@pytest.mark.browser
def test_a_tool_call_is_a_readable_block(browser, site):
    parts = ['{"city": "Han', 'oi", "days": 2}']
    calls = [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": parts[0]}}]
    site.say("", "look it up", calls=[*calls, {"index": 0, "function": {"arguments": parts[1]}}])
    browser.send("Weather?")
    assert browser.text(".call-title") == "Tool call weather"
    assert browser.text(".call pre") == '{\n  "city": "Hanoi",\n  "days": 2\n}'
    assert "said nothing" not in browser.text(".assistant")


@pytest.mark.browser
def test_a_phone_scrolls_only_down(browser, site):
    browser.resize(360, 700, phone=True)
    wide = "`" + "x" * 300 + "` " + "y" * 300 + "\n\n```\n" + "z" * 300 + "\n```\n\n$$" + "a+" * 120 + "b$$"
    site.say(RICH + wide + "\n\n| " + " | ".join("column" + str(n) for n in range(12)) + " |\n|" + "---|" * 12)
    browser.send("w" * 200)
    browser.until("document.querySelector('.tex.drawn')")
    widths = "[document.documentElement.scrollWidth, document.getElementById('scroller').scrollWidth, innerWidth]"
    page_width, log_width, width = browser.value(widths)
    assert width == 360 and page_width <= 360 and log_width <= 360
    assert browser.value("getComputedStyle(document.getElementById('sidebar')).visibility") == "hidden"
    browser.click("#open-sidebar")
    browser.until("getComputedStyle(document.getElementById('sidebar')).visibility === 'visible'")
    browser.keys(browser.ESCAPE)
    browser.until("getComputedStyle(document.getElementById('sidebar')).visibility === 'hidden'")
    small = "[...document.querySelectorAll('button')].filter((one) => one.offsetWidth && one.offsetWidth < 24).length"
    assert browser.value(small) == 0


LUMINANCE = """
const [selector] = arguments;
const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => [r, g, b].map((v) => linear(v / 255))
  .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
return [...document.querySelectorAll(selector)].filter((one) => one.offsetWidth && one.innerText.trim()).map((one) => {
  let under = one;
  let back = parse(getComputedStyle(under).backgroundColor);
  while (back[3] === 0) {
    under = under.parentElement;
    back = under ? parse(getComputedStyle(under).backgroundColor) : [255, 255, 255];
  }
  const [a, b] = [light(parse(getComputedStyle(one).color)), light(back)].sort();
  return [one.className || one.id || one.localName, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
}).filter(([, ratio]) => ratio < 4.5);
"""


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser, site, theme):
    site.say(RICH + "\n> quoted [link](https://example.org)", "thought", joules=3, usd=0.01)
    browser.send("Show me")
    browser.until("document.querySelector('.hl-keyword')")
    if browser.value("document.documentElement.dataset.theme") != theme:
        browser.click("#theme")
    assert browser.value("document.documentElement.dataset.theme") == theme
    browser.click(".thinking summary")
    time.sleep(0.3)  # colours fade over
    texts = "p, span:not(.katex *), h1, button, summary, .thoughts, code, td, th, a, blockquote, label, li, .bubble"
    assert browser.run(LUMINANCE, texts) == []
    browser.click("#open-settings")
    time.sleep(0.1)
    assert browser.run(LUMINANCE, "dialog *:not(option)") == []
    browser.click("#close-settings")


@pytest.mark.browser
def test_it_talks_with_a_real_model(chromium, tiny_model, tiny_tokenizer):
    listener = Listener(lambda report: Engine(tiny_model, tiny_tokenizer, max_batch=2), Served("tiny"), port=0)
    with listener.background():
        chromium.complaints()
        chromium.open(f"{listener.url}/")
        chromium.run("localStorage.setItem('leanseek.settings', JSON.stringify({ max_tokens: '24', seed: '1' }))")
        chromium.reload()
        assert chromium.text("#status-words") == "tiny"
        chromium.until("document.getElementById('about').innerText.startsWith('128 tokens of context')")
        chromium.send("start total 5 +3")
        assert re.match(r"(\d+) tokens?$", chromium.texts(".assistant .figures span")[0])
        assert chromium.value("document.querySelector('.failure').hidden")
        assert "prompt " in chromium.text(".assistant .figures")
    assert chromium.complaints() == []
