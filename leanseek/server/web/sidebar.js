// Sidebar: the list of conversations: choose, rename, export, delete.

import { iconButton, make } from "./element.js";

export class Sidebar {
  /** @param actions open(id), rename(id, title), export(id), remove(id). */
  constructor(list, actions) {
    Object.assign(this, { list, actions });
    list.addEventListener("keydown", (event) => this.#keys(event));
  }

  /** @param entries of the store, newest first. @param current the id on show. @param busy ids with a reply on its way. */
  show(entries, current, busy) {
    if (this.list.querySelector("input")) return; // a name is being typed
    const at = this.list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    this.list.replaceChildren(...entries.map((entry) => this.#item(entry, entry.id === current, busy.has(entry.id))));
    if (at) this.list.querySelector(`[data-id="${at}"] .open`)?.focus();
  }

  #item({ id, title }, current, busy) {
    const name = title || "New conversation";
    const open = make("button", {
      type: "button", class: "open", title: name, "aria-current": current ? "true" : undefined,
      onclick: () => this.actions.open(id),
    }, make("span", {}, name), busy && make("span", { class: "busy", role: "img", "aria-label": "a reply is being written" }));
    const tools = make("div", { class: "item-tools" },
      iconButton("edit", `Rename ${name}`, () => this.rename(id)),
      iconButton("save", `Export ${name}`, () => this.actions.export(id)),
      iconButton("remove", `Delete ${name}`, () => this.actions.remove(id)));
    return make("li", { "data-id": id, class: current ? "current" : undefined }, open, tools);
  }

  rename(id) {
    const item = this.list.querySelector(`[data-id="${id}"]`);
    const open = item.querySelector(".open");
    const field = make("input", { class: "name", maxlength: "200", "aria-label": "Name of the conversation" });
    field.value = open.title;
    let over = false;
    const close = (keeps) => {
      if (over) return;
      over = true;
      field.replaceWith(open);
      if (keeps && field.value.trim()) this.actions.rename(id, field.value.trim());
      this.list.querySelector(`[data-id="${id}"] .open`)?.focus();
    };
    field.addEventListener("blur", () => close(true));
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) close(true);
      if (event.key === "Escape") close(false);
    });
    open.replaceWith(field);
    field.select();
  }

  #keys(event) {
    const item = event.target.closest("li");
    if (!item || !event.target.classList.contains("open")) return;
    const moves = {
      ArrowDown: () => item.nextElementSibling?.querySelector(".open").focus(),
      ArrowUp: () => item.previousElementSibling?.querySelector(".open").focus(),
      Home: () => this.list.firstElementChild.querySelector(".open").focus(),
      End: () => this.list.lastElementChild.querySelector(".open").focus(),
      F2: () => this.rename(item.dataset.id),
      Delete: () => this.actions.remove(item.dataset.id),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }
}
