// Transcript: the turns on show, drawn at most once a frame, kept at the end while its reader is there.

import { TurnView } from "./turn.js";

const NEAR_PX = 60;

export class Transcript {
  /** @param root where turns go. @param scroller what scrolls. @param latest the button that leads to the end. */
  constructor(root, scroller, latest, actions) {
    Object.assign(this, { root, scroller, latest, actions });
    this.views = new Map();
    this.follows = true;
    this.frame = 0;
    scroller.addEventListener("scroll", () => {
      this.follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_PX;
      latest.hidden = this.follows;
    }, { passive: true });
    latest.addEventListener("click", () => this.toEnd());
    root.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Show a conversation. @param replies what is being written, by the turn's id. */
  show(conversation, replies) {
    if (this.conversation !== conversation) {
      this.views.clear();
      this.root.replaceChildren();
    }
    this.conversation = conversation;
    this.replies = replies;
    const path = conversation.path();
    const nodes = path.map((turn) => {
      if (!this.views.has(turn.id)) this.views.set(turn.id, new TurnView(turn, this.actions));
      return this.views.get(turn.id).node;
    });
    // Nodes that stay are not touched: taking them out would lose focus, folds and selections.
    nodes.forEach((node, at) => this.root.children[at] !== node && this.root.insertBefore(node, this.root.children[at]));
    while (this.root.children.length > nodes.length) this.root.lastChild.remove();
    for (const turn of path) this.#draw(turn);
    this.#keepUp();
  }

  /** Draw a turn that changed, soon. */
  update() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      for (const turn of this.conversation.path()) if (this.replies.has(turn.id)) this.#draw(turn);
      this.#keepUp();
    });
  }

  toEnd() {
    this.follows = true;
    this.#keepUp();
  }

  edit(turn) {
    this.views.get(turn.id)?.edit();
  }

  /** Put the keyboard on a turn, on one of its buttons if that is still there. */
  focus(turn, act) {
    const node = this.views.get(turn.id)?.node;
    const button = act && node?.querySelector(`[data-act="${act}"]:not(:disabled)`);
    (button || node)?.focus({ preventScroll: Boolean(button) });
  }

  #draw(turn) {
    const siblings = this.conversation.siblings(turn);
    const state = { reply: this.replies.get(turn.id), place: siblings.indexOf(turn), places: siblings.length };
    this.views.get(turn.id).update(state);
  }

  #keepUp() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Arrows, while a turn itself is in focus: up and down between turns, left and right between versions. */
  #walk(event) {
    const node = event.target;
    if (!node.dataset.turn || event.ctrlKey || event.metaKey || event.altKey) return;
    const turn = this.conversation.turns.get(node.dataset.turn);
    const moves = {
      ArrowUp: () => node.previousElementSibling?.focus(),
      ArrowDown: () => (node.nextElementSibling ? node.nextElementSibling.focus() : this.actions.leave()),
      ArrowLeft: () => this.actions.branch(turn, -1),
      ArrowRight: () => this.actions.branch(turn, 1),
    };
    if (!moves[event.key]) return;
    event.preventDefault();
    moves[event.key]();
  }
}
