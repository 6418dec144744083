// Markdown: a model's text becomes nodes, block by block. marked only reads it; the nodes are made here, from a fixed
// set of elements with text inside. HTML in the text is text: there is no way for it to become anything else.

import { Marked } from "./vendor/marked.esm.js";
import { codeBlock } from "./code.js";
import { make } from "./element.js";
import { formula } from "./maths.js";

const LINKS = new Set(["http:", "https:", "mailto:"]);
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", hellip: "…", mdash: "—", ndash: "–" };

// A dollar opens a formula only before, and closes one only behind, something that is no space: prices stay prices.
const INLINE = [
  [/^\$\$([^$]+?)\$\$/, true],
  [/^\\\[([\s\S]+?)\\\]/, true],
  [/^\\\(([\s\S]+?)\\\)/, false],
  [/^\$(?![\s$])((?:\\.|[^$\\\n])*?[^\s$\\])\$(?!\d)/, false],
];
const BLOCK = /^ {0,3}(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])[ \t]*(?:\n+|$)/;

const startsAt = (pattern) => (source) => {
  const at = source.search(pattern);
  return at < 0 ? undefined : at;
};

const marked = new Marked({
  gfm: true,
  breaks: true,
  // undefined: "not mine", so tags are read as the text they are.
  tokenizer: { html: () => undefined, tag: () => undefined },
  extensions: [
    {
      name: "formulas", level: "block", start: startsAt(/^ {0,3}(?:\$\$|\\\[)/m),
      tokenizer(source) {
        const found = BLOCK.exec(source);
        return found ? { type: "formulas", raw: found[0], text: found[1] ?? found[2], display: true } : undefined;
      },
    },
    {
      name: "formula", level: "inline", start: startsAt(/\$|\\[([]/),
      tokenizer(source) {
        for (const [pattern, display] of INLINE) {
          const found = pattern.exec(source);
          if (found) return { type: "formula", raw: found[0], text: found[1], display };
        }
        return undefined;
      },
    },
    {
      // The one tag that stands for something a text can have: models break lines in table cells with it.
      name: "lineBreak", level: "inline", start: startsAt(/<br/i),
      tokenizer(source) {
        const found = /^<br ?\/?>/i.exec(source);
        return found ? { type: "br", raw: found[0] } : undefined;
      },
    },
  ],
});

// How many blocks at the end of a growing text may still become others by what follows.
const UNSETTLED = 4;

/** Shows a text that may still be growing: what is settled is neither read again nor drawn again. */
export class MarkdownView {
  constructor(root) {
    this.root = root;
    this.text = "";
    this.whole = false;
    this.tokens = [];
    this.raws = [];
  }

  /** @param whole the text is complete, so definitions of links count for all that refers to them. */
  show(text, whole = false) {
    if (text === this.text && whole === this.whole) return;
    try {
      this.tokens = this.#read(text, whole);
    } catch {
      this.tokens = [{ type: "plain", raw: text, text }]; // nested too deeply: show it as it is
    }
    Object.assign(this, { text, whole });
    const shown = this.tokens.filter(isShown);
    // A definition at the end makes links of what was none further up.
    if (whole && this.tokens.some((token) => token.type === "def")) this.raws = [];
    let same = 0;
    while (same < shown.length && shown[same].raw === this.raws[same]) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const token of shown.slice(same)) this.root.append(block(token));
    this.raws = shown.map((token) => token.raw);
  }

  #read(text, whole) {
    if (whole || !text.startsWith(this.text)) return marked.lexer(text);
    const settled = this.tokens.slice(0, -UNSETTLED);
    const length = settled.reduce((sum, token) => sum + token.raw.length, 0);
    // marked reads other line breaks as \n: then lengths tell nothing.
    return text.includes("\r") ? marked.lexer(text) : [...settled, ...marked.lexer(text.slice(length))];
  }
}

function block(token) {
  switch (token.type) {
    case "heading":
      // The page's own headings are h1 and h2.
      return make(`h${Math.min(token.depth + 2, 6)}`, {}, inline(token.tokens));
    case "paragraph":
      return make("p", {}, inline(token.tokens));
    case "text":
      return make("div", {}, token.tokens ? inline(token.tokens) : decode(token.text));
    case "code":
      return codeBlock(token.text, (token.lang ?? "").split(/\s/)[0]);
    case "blockquote":
      return make("blockquote", {}, token.tokens.filter(isShown).map(block));
    case "list":
      return list(token);
    case "table":
      return table(token);
    case "hr":
      return make("hr");
    case "formulas":
      return make("div", { class: "formula" }, formula(token.text, true));
    default:
      return make("p", { class: "plain" }, token.text ?? token.raw);
  }
}

function list(token) {
  const start = token.ordered && token.start !== 1 ? { start: String(token.start) } : {};
  return make(token.ordered ? "ol" : "ul", start, token.items.map((item) => {
    const inside = item.tokens.filter((one) => isShown(one) && one.type !== "checkbox").map(block);
    if (!item.task) return make("li", {}, inside);
    const label = item.checked ? "done" : "to do";
    const box = make("input", { type: "checkbox", disabled: true, checked: item.checked, "aria-label": label });
    return make("li", { class: "task" }, box, make("div", {}, inside));
  }));
}

function table(token) {
  const cell = (tag) => (one) => {
    const aligned = one.align ? `to-${one.align}` : undefined;
    return make(tag, { class: aligned, scope: tag === "th" ? "col" : undefined }, inline(one.tokens));
  };
  const head = make("thead", {}, make("tr", {}, token.header.map(cell("th"))));
  const body = make("tbody", {}, token.rows.map((row) => make("tr", {}, row.map(cell("td")))));
  // It scrolls in itself, and by keyboard too, instead of widening the page.
  return make("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "table" }, make("table", {}, head, body));
}

function inline(tokens = []) {
  return tokens.map((token) => {
    switch (token.type) {
      case "strong":
      case "em":
      case "del":
        return make(token.type, {}, inline(token.tokens));
      case "codespan":
        return make("code", {}, token.text);
      case "br":
        return make("br");
      case "link":
        return link(token.href, inline(token.tokens), token.raw);
      case "image":
        // Fetching it would tell its server who reads this.
        return link(token.href, [`image: ${token.text || token.href}`], token.raw);
      case "formula":
        return formula(token.text, token.display);
      case "escape":
        return token.text;
      default:
        return token.tokens ? make("span", {}, inline(token.tokens)) : decode(token.text ?? token.raw);
    }
  });
}

/** A link where it leads somewhere harmless; otherwise what was written. */
function link(href, children, raw) {
  let url;
  try {
    url = new URL(href);
  } catch {
    return raw;
  }
  if (!LINKS.has(url.protocol)) return raw;
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer", title: url.href }, children);
}

const isShown = (token) => token.type !== "space" && token.type !== "def";

/** Markdown knows HTML's entities; they become characters of a text node. */
function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w{2,8}));/gi, (whole, decimal, hexadecimal, name) => {
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : whole;
    const point = decimal ? Number(decimal) : parseInt(hexadecimal, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : whole;
  });
}
