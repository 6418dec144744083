// Code: a block with its language, a button that copies it, and colours by highlight.js, fetched when first needed.

import { iconButton, icon, make } from "./element.js";

const LONGEST = 60000;
const GRAMMARS = {
  bash: "sh shell zsh console", c: "h", cpp: "c++ cc hpp cxx", css: "", diff: "patch", go: "golang", ini: "toml",
  java: "", javascript: "js jsx mjs", json: "jsonl json5", latex: "tex", makefile: "make", markdown: "md",
  python: "py python3", rust: "rs", sql: "", typescript: "ts tsx", xml: "html svg xhtml", yaml: "yml",
};
const FILES = new Map();
for (const [name, aliases] of Object.entries(GRAMMARS)) {
  for (const alias of [name, ...aliases.split(" ")]) if (alias) FILES.set(alias, name);
}

let library = null;
const loading = new Map();

/** Make a block of code. */
export function codeBlock(text, language) {
  const code = make("code", {}, text);
  const copy = iconButton("copy", "Copy the code", () => copyText(text, copy));
  const bar = make("div", { class: "code-bar" }, make("span", {}, language || "text"), copy);
  // Focusable, so that it can be scrolled by keyboard.
  const pre = make("pre", { tabindex: "0", "aria-label": language ? `code, ${language}` : "code" }, code);
  colour(code, text, FILES.get(language.toLowerCase()));
  return make("div", { class: "code" }, bar, pre);
}

/** Put a text into the clipboard, and show on the button that it is there. */
export async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https browsers lend no clipboard; the old way works in all of them.
    const field = make("textarea", { class: "unseen" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  button.replaceChildren(icon("done"));
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

function colour(code, text, grammar) {
  if (!grammar || text.length > LONGEST) return;
  if (library?.getLanguage(grammar)) paint(code, text, grammar);
  else load(grammar).then(() => paint(code, text, grammar), () => {});
}

function load(grammar) {
  if (!loading.has(grammar)) {
    const files = [import("./vendor/highlight/core.min.js"), import(`./vendor/highlight/${grammar}.min.js`)];
    loading.set(grammar, Promise.all(files).then(([core, language]) => {
      library = core.default;
      library.registerLanguage(grammar, language.default);
    }));
  }
  return loading.get(grammar);
}

/** Draw from highlight.js' tree: its usual result is a text of HTML, and this page makes no nodes from such texts. */
function paint(code, text, grammar) {
  const result = library.highlight(text, { language: grammar, ignoreIllegals: true });
  const made = document.createDocumentFragment();
  const open = [made];
  result._emitter.walk({
    addText: (part) => open.at(-1).append(part),
    openNode: ({ scope }) => {
      // "title.function" is a kind and its sort: class="hl-title function".
      const node = make("span", { class: scope ? `hl-${scope.replaceAll(".", " ")}` : undefined });
      open.at(-1).append(node);
      open.push(node);
    },
    closeNode: () => open.pop(),
  });
  code.replaceChildren(made);
}
