// Reply: one answer on its way from the server into its turn.

import { Meter } from "./figures.js";
import { ask, Refusal } from "./stream.js";

export class Reply {
  /** @param turn the assistant's turn to fill. @param body the request. @param key the API key, or "". */
  constructor(turn, body, key) {
    Object.assign(this, { turn, body, key });
    this.status = 0;
    this.meter = new Meter();
    this.aborter = new AbortController();
  }

  get isThinking() {
    return this.meter.first !== null && this.meter.thought === null;
  }

  stop() {
    this.aborter.abort();
  }

  /** Fill the turn, calling `changed` at each event; afterwards the turn says how it ended. Never throws. */
  async run(changed) {
    const { turn } = this;
    Object.assign(turn, { content: "", reasoning: "", calls: [], error: "", finish: null, figures: null });
    try {
      for await (const chunk of ask(this.body, this.key, this.aborter.signal)) {
        this.#take(chunk);
        this.measure();
        changed();
      }
    } catch (error) {
      if (error.name === "AbortError") turn.finish = "stopped";
      else {
        turn.finish = "failed";
        turn.error = error instanceof Refusal ? error.message : `The page failed: ${error.message}`;
        this.status = error.status ?? 0;
      }
    }
    this.meter.end();
    turn.finish ??= "stop";
    this.measure();
  }

  /** Give the turn its figures as they stand; before the first token there are none. */
  measure() {
    if (this.meter.first !== null || this.meter.usage) this.turn.figures = this.meter.figures();
  }

  #take(chunk) {
    const { turn, meter } = this;
    if (chunk.usage) meter.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const delta = choice.delta ?? {};
    if (delta.reasoning_content) {
      turn.reasoning += delta.reasoning_content;
      meter.thinking();
    }
    if (delta.content) {
      turn.content += delta.content;
      meter.answering();
    }
    for (const part of delta.tool_calls ?? []) {
      // The name comes first and whole, the arguments in pieces.
      const call = (turn.calls[part.index ?? 0] ??= { name: "", arguments: "" });
      call.name += part.function?.name ?? "";
      call.arguments += part.function?.arguments ?? "";
      meter.answering();
    }
    if (choice.finish_reason) turn.finish = choice.finish_reason;
  }
}
