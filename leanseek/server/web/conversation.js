// Conversation: a tree of turns. Editing and retrying add a branch; what was said before is never lost.

const ROLES = ["user", "assistant"];
const TITLE_CHARACTERS = 60;
const MOST_TURNS = 20000;

/** A name that no other conversation or turn has. (randomUUID exists on https and localhost alone.) */
export function freshId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class Conversation {
  /** `chosen` tells for each turn ("" is the beginning) which of the turns after it is on show. */
  constructor({ id = freshId(), title = "", created = Date.now(), changed = created, turns = [], chosen = {} } = {}) {
    Object.assign(this, { id, title, created, changed });
    this.turns = new Map(turns.map((turn) => [turn.id, turn]));
    this.chosen = new Map(Object.entries(chosen));
  }

  get name() {
    return this.title || "New conversation";
  }

  /** The turns on show, first to last. */
  path() {
    const path = [];
    for (let turn = this.#next(""); turn; turn = this.#next(turn.id)) path.push(turn);
    return path;
  }

  /** The turns that answer the same turn as this one does, oldest first. */
  siblings(turn) {
    return [...this.turns.values()].filter((other) => other.parent === turn.parent);
  }

  /** Put a turn behind another ("" or undefined: at the beginning) and show it. */
  add(parent, role, content = "") {
    const turn = {
      id: freshId(), parent: parent?.id ?? "", role, content, reasoning: "", calls: [],
      figures: null, error: "", finish: role === "user" ? "said" : null, made: Date.now(),
    };
    this.turns.set(turn.id, turn);
    this.choose(turn);
    if (!this.title && role === "user") this.title = shorten(content);
    return turn;
  }

  choose(turn) {
    this.chosen.set(turn.parent, turn.id);
    this.changed = Date.now();
  }

  /** Show the branch that is `step` further (-1: back); return the turn it begins with, or null at the end. */
  turnTo(turn, step) {
    const siblings = this.siblings(turn);
    const other = siblings[siblings.indexOf(turn) + step];
    if (other) this.choose(other);
    return other ?? null;
  }

  parentOf(turn) {
    return this.turns.get(turn.parent);
  }

  /** What a request sends in order to get an answer to `last`: all turns that lead to it. */
  messages(last, system) {
    const messages = [];
    for (let turn = last; turn; turn = this.parentOf(turn)) {
      // A reply that failed before its first word is nothing that the model said.
      if (turn.role === "user" || turn.content) messages.unshift({ role: turn.role, content: turn.content });
    }
    return system ? [{ role: "system", content: system }, ...messages] : messages;
  }

  toJSON() {
    const { id, title, created, changed } = this;
    return { id, title, created, changed, turns: [...this.turns.values()], chosen: Object.fromEntries(this.chosen) };
  }

  /** Read what `toJSON` wrote, or anything else: every field is checked. Throws an Error with a sentence. */
  static fromJSON(value, { keepId = true } = {}) {
    if (!isObject(value) || !Array.isArray(value.turns)) throw new Error("this is not a conversation: it has no turns");
    if (value.turns.length > MOST_TURNS) throw new Error(`a conversation has ${MOST_TURNS} turns at most`);
    const turns = [];
    const known = new Set([""]);
    for (const given of value.turns) {
      const turn = readTurn(given);
      // Parents stand before their children, which also means that there is no circle.
      if (!known.has(turn.parent) || known.has(turn.id)) throw new Error("the turns of a conversation do not form a tree");
      known.add(turn.id);
      turns.push(turn);
    }
    const chosen = {};
    for (const turn of turns) {
      const wish = isObject(value.chosen) && value.chosen[turn.parent];
      if (!Object.hasOwn(chosen, turn.parent) || wish === turn.id) chosen[turn.parent] = turn.id;
    }
    const created = number(value.created) ?? Date.now();
    return new Conversation({
      id: keepId && isId(value.id) ? value.id : freshId(),
      title: text(value.title).slice(0, 200), created, changed: number(value.changed) ?? created, turns, chosen,
    });
  }

  #next(id) {
    return this.turns.get(this.chosen.get(id));
  }
}

/** The first line of a text, short enough for a list. */
function shorten(content) {
  const line = content.trim().split("\n", 1)[0];
  return line.length > TITLE_CHARACTERS ? line.slice(0, TITLE_CHARACTERS - 1).trimEnd() + "…" : line;
}

function readTurn(given) {
  if (!isObject(given) || !isId(given.id) || !ROLES.includes(given.role)) throw new Error("a turn lacks its id or role");
  if (given.parent !== "" && !isId(given.parent)) throw new Error("a turn does not say what it follows");
  return {
    id: given.id, parent: given.parent, role: given.role, content: text(given.content), reasoning: text(given.reasoning),
    calls: (Array.isArray(given.calls) ? given.calls : []).filter(isObject).map((call) => ({
      name: text(call.name), arguments: text(call.arguments),
    })),
    figures: readFigures(given.figures), error: text(given.error),
    // A reply that was under way when the page was closed.
    finish: text(given.finish) || "stopped", made: number(given.made) ?? 0,
  };
}

function readFigures(given) {
  if (!isObject(given)) return null;
  return Object.fromEntries(Object.entries(given).filter(([, value]) => number(value) !== null));
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isId = (value) => typeof value === "string" && /^[0-9a-f]{8,64}$/.test(value);
const text = (value) => (typeof value === "string" ? value : "");
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
