// Maths: TeX becomes a formula by KaTeX, which is fetched (from this server) when the first formula appears.

import { make } from "./element.js";

const LONGEST = 5000;
// A formula may neither load, nor link, nor style at will, and its macros cannot grow without end.
const OPTIONS = { throwOnError: true, trust: false, strict: "ignore", maxExpand: 500, maxSize: 40 };

let loading = null;

/** Make the node of a formula; until KaTeX is here, and where TeX has a fault, it shows the source. */
export function formula(tex, display) {
  const node = make("span", { class: "tex" }, tex);
  if (tex.length > LONGEST) return node;
  if (globalThis.katex) draw(node, tex, display);
  else load().then(() => draw(node, tex, display), () => {});
  return node;
}

function load() {
  loading ??= new Promise((resolve, reject) => {
    document.head.append(make("link", { rel: "stylesheet", href: "vendor/katex/katex.min.css" }));
    import("./vendor/katex/katex.min.js").then(resolve, reject);
  });
  return loading;
}

function draw(node, tex, display) {
  try {
    const tree = globalThis.katex.__renderToDomTree(tex, { ...OPTIONS, displayMode: display });
    freeOfStyleAttributes(tree);
    node.replaceChildren(tree.toNode());
    node.className = display ? "tex drawn display" : "tex drawn";
  } catch (error) {
    node.title = error.message;
  }
}

/**
 * KaTeX styles nodes through the object model, which the content security policy allows, but for a few that get a style
 * attribute, which it does not: for these, the same style is set the allowed way.
 */
function freeOfStyleAttributes(tree) {
  const style = tree.attributes?.style;
  if (style) {
    delete tree.attributes.style;
    const toNode = tree.toNode;
    tree.toNode = function () {
      const made = toNode.call(this);
      made.style.cssText = style;
      return made;
    };
  }
  for (const child of tree.children ?? []) freeOfStyleAttributes(child);
}
