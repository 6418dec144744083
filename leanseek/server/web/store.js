// Store: what this browser keeps (localStorage): conversations, each under its own key, a list of them, and settings.

import { Conversation } from "./conversation.js";

const LIST = "leanseek.conversations";
const ONE = "leanseek.conversation.";
const FORMAT = "leanseek-conversations";

export class Store {
  /** @param tell called with a sentence when something could not be kept. */
  constructor(tell) {
    this.tell = tell;
  }

  /** Every conversation's id, title and last change, newest first. */
  list() {
    const entries = this.read(LIST);
    return (Array.isArray(entries) ? entries : []).sort((a, b) => b.changed - a.changed);
  }

  /** A conversation, or null where there is none or it cannot be read. */
  load(id) {
    try {
      return Conversation.fromJSON(this.read(ONE + id));
    } catch {
      return null;
    }
  }

  save(conversation) {
    const { id, title, changed } = conversation;
    if (!this.write(ONE + id, conversation)) return;
    this.write(LIST, [{ id, title, changed }, ...this.list().filter((entry) => entry.id !== id)]);
  }

  remove(id) {
    localStorage.removeItem(ONE + id);
    this.write(LIST, this.list().filter((entry) => entry.id !== id));
  }

  /** Conversations as a text that `importText` takes. */
  exportText(conversations) {
    return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
  }

  /** Keep the conversations of an exported text, as new ones; return how many. Throws an Error with a sentence. */
  importText(text) {
    let value;
    try {
      value = JSON.parse(text);
    } catch {
      throw new Error("the file is not JSON");
    }
    if (value?.format !== FORMAT || !Array.isArray(value.conversations)) {
      throw new Error("the file was not exported from this page");
    }
    // All are read before the first is kept: a broken file changes nothing.
    const conversations = value.conversations.map((one) => Conversation.fromJSON(one, { keepId: false }));
    conversations.forEach((conversation) => this.save(conversation));
    return conversations.length;
  }

  read(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  }

  write(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
      return true;
    } catch {
      this.tell("This browser has no room left to keep conversations. Export some, then delete them.");
      return false;
    }
  }

  /** Call `changed` when another tab has changed the list. */
  watch(changed) {
    addEventListener("storage", (event) => event.key === LIST && changed());
  }
}
