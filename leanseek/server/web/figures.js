// Figures: what a reply took (time, tokens, joules, money), measured while it comes and worded for people.

const COUNTS = new Intl.NumberFormat("en");
// Tokens that come within less than this have come in few pieces, whose distance tells nothing of the speed.
const BURST_MS = 250;

/** Measures a reply while it comes: one event with text is about one token until the server's own count arrives. */
export class Meter {
  constructor(now = () => performance.now()) {
    this.now = now;
    this.started = now();
    this.first = this.thought = this.ended = null;
    this.thinkingTokens = this.answerTokens = 0;
    this.usage = null;
  }

  thinking() {
    this.first ??= this.now();
    this.thinkingTokens += 1;
  }

  answering() {
    this.first ??= this.now();
    this.thought ??= this.now();
    this.answerTokens += 1;
  }

  end() {
    this.ended = this.now();
  }

  /** Plain numbers, as they are kept with the turn. */
  figures() {
    const now = this.ended ?? this.now();
    const first = this.first ?? now;
    const usage = this.usage ?? {};
    const tokens = usage.completion_tokens ?? this.thinkingTokens + this.answerTokens;
    const figures = {
      tokens, seconds: (now - this.started) / 1000, first_seconds: (first - this.started) / 1000,
      thinking_seconds: this.thinkingTokens ? ((this.thought ?? now) - first) / 1000 : 0,
      thinking_tokens: usage.completion_tokens_details?.reasoning_tokens ?? this.thinkingTokens,
      rate: this.#rate(tokens, first, now),
      counted: this.usage ? 1 : 0,
      prompt_tokens: usage.prompt_tokens, hit_tokens: usage.prompt_cache_hit_tokens,
      miss_tokens: usage.prompt_cache_miss_tokens, joules: usage.joules, usd: usage.usd,
    };
    return Object.fromEntries(Object.entries(figures).filter(([, value]) => Number.isFinite(value)));
  }

  /** Tokens a second after the first, whose time is the prompt's; of a short reply, over its whole time. */
  #rate(tokens, first, now) {
    const [counted, spent] = now - first < BURST_MS ? [tokens, now - this.started] : [tokens - 1, now - first];
    return counted > 0 && spent > 0 ? (counted * 1000) / spent : 0;
  }
}

/** "Thought for 2.1 s · 84 tokens" */
export function describeThinking(figures, live) {
  if (!figures) return live ? "Thinking…" : "Thoughts";
  const spent = `${seconds(figures.thinking_seconds)} · ${tokens(figures.thinking_tokens)}`;
  return live ? `Thinking… ${spent}` : `Thought for ${spent}`;
}

/** The parts of the line under a reply, each with what it means. */
export function describe(figures) {
  if (!figures) return [];
  const about = figures.counted ? "" : "≈ ";
  const parts = [
    [about + tokens(figures.tokens), "tokens of the reply, thinking included"],
    [`${about}${rate(figures.rate)}`, "tokens a second, after the first; of a short reply, over its whole time"],
    [seconds(figures.seconds), `from sending to the end; the first token came after ${seconds(figures.first_seconds)}`],
  ];
  if (figures.joules !== undefined) parts.push([joules(figures.joules), "energy of this reply, as the server counts it"]);
  if (figures.usd !== undefined) parts.push([money(figures.usd), "cost of this reply, as the server counts it"]);
  if (figures.prompt_tokens !== undefined) {
    const hit = figures.hit_tokens ?? 0;
    const cached = hit ? `, ${COUNTS.format(hit)} cached` : "";
    const miss = figures.miss_tokens ?? figures.prompt_tokens - hit;
    parts.push([
      `prompt ${COUNTS.format(figures.prompt_tokens)}${cached}`,
      `tokens of the prompt: ${COUNTS.format(hit)} from the cache, ${COUNTS.format(miss)} read anew`,
    ]);
  }
  return parts.filter(([text]) => !text.endsWith("–"));
}

/** Sums over the turns of a conversation: "1.2 kJ · $0.0004", or "" where the server counts neither. */
export function total(turns) {
  const sum = (name) => turns.reduce((all, turn) => all + (turn.figures?.[name] ?? 0), 0);
  const parts = [];
  if (sum("joules") > 0) parts.push(joules(sum("joules")));
  if (sum("usd") > 0) parts.push(money(sum("usd")));
  return parts.join(" · ");
}

export function seconds(value) {
  if (value >= 100) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  return `${value.toFixed(1)} s`;
}

export function tokens(count) {
  return `${COUNTS.format(count)} ${count === 1 ? "token" : "tokens"}`;
}

function rate(value) {
  return value ? `${value < 10 ? value.toFixed(1) : COUNTS.format(Math.round(value))} tokens/s` : "–";
}

function joules(value) {
  if (value >= 1000) return `${(value / 1000).toPrecision(3)} kJ`;
  return value >= 1 || value === 0 ? `${Number(value.toPrecision(3))} J` : `${Number((value * 1000).toPrecision(2))} mJ`;
}

/** Two digits that mean something, however small the sum, and never an exponent. */
function money(value) {
  if (value === 0) return "$0";
  const digits = value >= 0.1 ? 2 : Math.min(12, 1 - Math.floor(Math.log10(value)));
  return `$${value.toFixed(digits)}`;
}
