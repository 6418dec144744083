// Elements: how every other file makes nodes. Text is always a text node; nothing here reads a string as HTML.

/**
 * Make an element. A function under "onclick" and the like is listened with; true is an attribute without a value;
 * undefined, null and false are left out, among the children too.
 */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

// Strokes on a field of 24 by 24, drawn for this page.
const STROKES = {
  menu: "M4 7h16M4 12h16M4 17h10",
  add: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  done: "M5 13l4 4L19 7",
  edit: "M5 19h4L19 9l-4-4L5 15zM13 7l4 4",
  retry: "M19 12a7 7 0 1 1-2-5M19 4v4h-4",
  back: "M14 6l-6 6 6 6",
  forth: "M10 6l6 6-6 6",
  down: "M6 10l6 6 6-6",
  settings: "M4 7h9M17 7h3M13 5v4M4 12h3M11 12h9M7 10v4M4 17h9M17 17h3M13 15v4",
  remove: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12M10 11v5M14 11v5",
  save: "M12 4v11M7 11l5 4 5-4M5 20h14",
  light: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 3v2M12 19v2M3 12h2M19 12h2M6 6l1 1M17 17l1 1M18 6l-1 1M7 17l-1 1",
  dark: "M19 14A8 8 0 0 1 10 5a8 8 0 1 0 9 9z",
  close: "M6 6l12 12M18 6L6 18",
};

/** Make an icon. It is not read aloud: what it stands in needs a name. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const node = document.createElementNS(space, "svg");
  node.setAttribute("viewBox", "0 0 24 24");
  node.setAttribute("class", "icon");
  node.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", STROKES[name]);
  node.append(path);
  return node;
}

/** Make a button that shows an icon and says its name to readers and on hovering. */
export function iconButton(name, label, onclick, more = {}) {
  return make("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...more }, icon(name));
}

/** Offer a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
