// Toast: a sentence that comes and goes, with one thing that may be done about it.

import { make } from "./element.js";

const STAYS_MS = 7000;

export class Toast {
  constructor(root) {
    this.root = root;
    this.timer = 0;
  }

  say(sentence, label, action) {
    clearTimeout(this.timer);
    const button = label && make("button", { type: "button", onclick: () => {
      this.hide();
      action();
    } }, label);
    this.root.hidden = false;
    this.root.replaceChildren(make("span", {}, sentence), ...(button ? [button] : []));
    this.timer = setTimeout(() => this.hide(), STAYS_MS);
  }

  hide() {
    clearTimeout(this.timer);
    this.root.hidden = true;
  }
}
