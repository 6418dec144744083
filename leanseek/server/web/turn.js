// Turn: how one message looks: a question in its bubble; a reply with folded thinking, text, tool calls, figures.

import { codeBlock, copyText } from "./code.js";
import { iconButton, make } from "./element.js";
import { describe, describeThinking } from "./figures.js";
import { MarkdownView } from "./markdown.js";

const ENDINGS = {
  length: "Cut off at the token limit.",
  stopped: "Stopped.",
  content_filter: "Withheld by the server's filter.",
  insufficient_system_resource: "The server ran out of resources.",
};

export class TurnView {
  /** @param actions what the buttons do: retry(turn), edit(turn, text), branch(turn, step), key(value, turn). */
  constructor(turn, actions) {
    this.turn = turn;
    this.actions = actions;
    this.node = make("article", { class: `turn ${turn.role}`, tabindex: "-1", "data-turn": turn.id });
    this.foot = make("footer", { class: "foot" });
    if (turn.role === "user") this.#buildQuestion();
    else this.#buildReply();
  }

  /** Draw the turn as it is now. @param reply the Reply that is filling it, if one is. */
  update({ reply = null, place = 0, places = 1 } = {}) {
    const { turn, node } = this;
    const who = turn.role === "user" ? "You" : "Reply";
    node.setAttribute("aria-label", places > 1 ? `${who}, version ${place + 1} of ${places}` : who);
    node.classList.toggle("live", Boolean(reply));
    if (turn.role === "assistant") this.#updateReply(reply);
    this.#updateFoot(Boolean(reply), place, places);
  }

  #buildQuestion() {
    this.bubble = make("div", { class: "bubble" }, this.turn.content);
    this.node.append(this.bubble, this.foot);
  }

  #buildReply() {
    this.summary = make("summary");
    this.thoughts = make("div", { class: "thoughts" });
    this.fold = make("details", { class: "thinking", hidden: true }, this.summary, this.thoughts);
    this.content = make("div", { class: "markdown" });
    this.markdown = new MarkdownView(this.content);
    this.calls = make("div", { class: "calls" });
    this.waiting = make("div", { class: "waiting", hidden: true }, make("i"), make("i"), make("i"));
    this.ending = make("p", { class: "ending", hidden: true });
    this.failure = make("div", { class: "failure", role: "alert", hidden: true });
    this.node.append(this.fold, this.content, this.calls, this.waiting, this.ending, this.failure, this.foot);
  }

  #updateReply(reply) {
    const { turn } = this;
    const thinking = Boolean(reply?.isThinking);
    this.fold.hidden = !turn.reasoning;
    setText(this.summary, describeThinking(turn.figures, thinking));
    this.fold.classList.toggle("live", thinking);
    growText(this.thoughts, turn.reasoning);
    this.markdown.show(turn.content, !reply);
    const calls = JSON.stringify(turn.calls);
    if (calls !== this.drawnCalls) {
      this.calls.replaceChildren(...turn.calls.filter(Boolean).map(callBlock));
      this.drawnCalls = calls;
    }
    this.waiting.hidden = !reply || Boolean(turn.content || turn.reasoning);
    const ending = reply ? "" : (ENDINGS[turn.finish] ?? "");
    const silent = !reply && turn.finish === "stop" && !turn.content && !turn.calls.length;
    setText(this.ending, silent ? "The model said nothing." : ending);
    this.ending.hidden = !this.ending.textContent;
    if (this.drawnError !== turn.error) this.#drawFailure(reply);
  }

  #drawFailure() {
    const { turn, actions } = this;
    this.drawnError = turn.error;
    this.failure.hidden = !turn.error;
    if (!turn.error) return;
    const parts = [make("p", {}, turn.error)];
    if (actions.needsKey(turn)) {
      const field = make("input", {
        type: "password", name: "key", autocomplete: "off", required: true, "aria-label": "API key", placeholder: "API key",
      });
      const send = (event) => {
        event.preventDefault();
        actions.key(field.value.trim(), turn);
      };
      parts.push(make("form", { class: "key", onsubmit: send }, field, make("button", { class: "main" }, "Use this key")));
    } else {
      parts.push(make("button", { type: "button", class: "plain", onclick: () => actions.retry(turn) }, "Try again"));
    }
    this.failure.replaceChildren(...parts);
  }

  #updateFoot(live, place, places) {
    const { turn, actions } = this;
    // Rebuilt only when it changes: whoever stands on one of its buttons shall not be thrown off.
    const state = JSON.stringify([live, place, places, live ? 0 : turn.figures, turn.finish]);
    if (!live && state === this.drawnFoot) return;
    const figures = make("span", { class: "figures" },
      describe(turn.figures).map(([text, title]) => make("span", { title }, text)));
    if (live && this.drawnFoot === state) return void this.foot.lastChild.replaceWith(figures);
    this.drawnFoot = state;
    const tools = make("div", { class: "tools" });
    if (places > 1) {
      const step = (by, name, label, ends) =>
        iconButton(name, label, () => actions.branch(turn, by), { disabled: ends, "data-act": name });
      tools.append(
        step(-1, "back", "Previous version", place === 0),
        make("span", { class: "place" }, `${place + 1}/${places}`),
        step(1, "forth", "Next version", place === places - 1),
      );
    }
    // A failure has its own button, and nothing to copy.
    if (!live && (turn.content || !turn.error)) {
      const copy = iconButton("copy", "Copy", () => copyText(turn.content, copy), { "data-act": "copy" });
      tools.append(copy);
      if (turn.role === "user") tools.append(iconButton("edit", "Edit", () => this.edit(), { "data-act": "edit" }));
      else tools.append(iconButton("retry", "Try again", () => actions.retry(turn), { "data-act": "retry" }));
    }
    this.foot.replaceChildren(tools, figures);
  }

  /** Let the question be changed in its place; sending makes a branch. */
  edit() {
    const { turn, actions } = this;
    const field = make("textarea", { "aria-label": "Edit the message", rows: "1" });
    field.value = turn.content;
    const close = () => {
      form.replaceWith(this.bubble);
      this.foot.hidden = false;
      this.node.focus();
    };
    const send = (event) => {
      event.preventDefault();
      const text = field.value.trim();
      close();
      if (text) actions.edit(turn, text);
    };
    const form = make("form", { class: "edit", onsubmit: send }, field, make("div", { class: "edit-row" },
      make("button", { type: "button", class: "plain", onclick: close }, "Cancel"), make("button", { class: "main" }, "Send")));
    field.addEventListener("input", () => grow(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (isEnter(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.bubble.replaceWith(form);
    this.foot.hidden = true;
    grow(field);
    field.focus();
  }
}

/** Enter that sends: not with Shift, and not while an input method is composing. */
export function isEnter(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** Make a text field as high as its text. */
export function grow(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

function callBlock(call) {
  let text = call.arguments;
  try {
    text = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // Still on its way, or not JSON: shown as it is.
  }
  const title = make("p", { class: "call-title" }, "Tool call ", make("code", {}, call.name || "…"));
  return make("div", { class: "call" }, title, text ? codeBlock(text, "json") : null);
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Append what is new: a text that only grows keeps its selection. */
function growText(node, text) {
  const shown = node.textContent;
  if (text.startsWith(shown)) {
    if (text.length > shown.length) node.append(text.slice(shown.length));
    node.normalize();
  } else node.textContent = text;
}
