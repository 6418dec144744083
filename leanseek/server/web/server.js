// Server: what it serves, and whether it is ready, asked again and again until it is.

import { headers } from "./stream.js";

const PATIENCE_MS = 1500;

export class Server {
  /** @param changed called with { state, words, progress }; state is "ready", "loading", "failed" or "away". */
  constructor(changed) {
    this.changed = changed;
    this.timer = 0;
  }

  /** Ask whether the model is ready; goes on by itself while it is not. */
  async watch() {
    clearTimeout(this.timer);
    const status = await this.#look();
    this.changed(status);
    if (status.state !== "ready") this.timer = setTimeout(() => this.watch(), PATIENCE_MS);
  }

  async #look() {
    try {
      const answer = await fetch("ready", { cache: "no-store" });
      const said = await answer.json();
      if (answer.ok) return { state: "ready", words: said.model ?? "ready", progress: 1 };
      if (said.status === "loading") {
        return { state: "loading", words: said.phase || "loading", progress: said.progress ?? 0 };
      }
      return { state: "failed", words: said.error?.message ?? "the model could not be loaded", progress: 0 };
    } catch {
      return { state: "away", words: "the server does not answer", progress: 0 };
    }
  }

  /** The models by GET /v1/models: id and context_length; none where the server does not tell. */
  async models(key) {
    try {
      const answer = await fetch("v1/models", { headers: headers(key), cache: "no-store" });
      return answer.ok ? ((await answer.json()).data ?? []) : [];
    } catch {
      return [];
    }
  }
}
