// Stream: a chat request, and its answer's server-sent events one by one.

/** The server said no, or broke off; the message is a sentence for people. */
export class Refusal extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Headers that every request carries; the key only where there is one. */
export function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/**
 * Ask, and yield the chunks of the answer. Returns quietly after the last one; throws a Refusal when the server refuses,
 * fails, goes away or ends before it was done, and an AbortError when `signal` stops it.
 */
export async function* ask(body, key, signal) {
  const answer = await post(body, key, signal);
  let finished = false;
  try {
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refusal(sentence(chunk.error.message), answer.status);
      finished ||= Boolean(chunk.choices?.[0]?.finish_reason);
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal("The connection broke off before the reply was complete.");
  }
  if (!finished) throw new Refusal("The server ended the reply before it was complete.");
}

async function post(body, key, signal) {
  let answer;
  try {
    answer = await fetch("v1/chat/completions", {
      method: "POST", body: JSON.stringify(body), signal, headers: { "content-type": "application/json", ...headers(key) },
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?");
  }
  if (!answer.ok) throw new Refusal(await reason(answer), answer.status);
  return answer;
}

async function reason(answer) {
  if (answer.status === 401) return "This server wants an API key.";
  try {
    return sentence((await answer.json()).error.message);
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

/** Servers write their messages without capital and full stop. */
function sentence(message) {
  const text = String(message || "the server failed and does not say why").trim();
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

/** Yield the data of each event. Comments (keep-alive) and other fields are passed over. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (held + value).split("\n");
      held = lines.pop();
      for (const line of lines.map((one) => one.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    // Also when the reader of this generator stops early: the server sees that nobody listens.
    reader.cancel().catch(() => {});
  }
}
