// Settings: how replies are asked for. Empty fields send nothing: the model's own defaults hold.

const KEY = "leanseek.settings";
const SECRET = "leanseek.key";
const DEFAULTS = {
  system: "", model: "", thinking: true, effort: "", temperature: "", top_p: "", top_k: "", min_p: "",
  frequency_penalty: "", presence_penalty: "", repetition_penalty: "", max_tokens: "", seed: "", theme: "",
};
const NUMBERS = [
  "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
  "max_tokens", "seed",
];

export class Settings {
  constructor(store) {
    this.store = store;
    this.values = { ...DEFAULTS };
    const kept = store.read(KEY) ?? {};
    for (const [name, value] of Object.entries(DEFAULTS)) {
      if (typeof kept[name] === typeof value) this.values[name] = kept[name];
    }
    this.listeners = [];
  }

  set(name, value) {
    this.values[name] = value;
    this.store.write(KEY, this.values);
    this.listeners.forEach((listener) => listener(name, value));
  }

  onChange(listener) {
    this.listeners.push(listener);
  }

  /** The API key: kept for this tab alone, and never exported. */
  get key() {
    return sessionStorage.getItem(SECRET) ?? "";
  }

  set key(value) {
    if (value) sessionStorage.setItem(SECRET, value);
    else sessionStorage.removeItem(SECRET);
  }

  /** The body of a chat request, but for its messages. */
  request() {
    const { thinking, effort, model } = this.values;
    const body = {
      stream: true, stream_options: { include_usage: true, continuous_usage_stats: true },
      thinking: { type: thinking ? "enabled" : "disabled" },
    };
    if (model) body.model = model;
    if (thinking && effort) body.reasoning_effort = effort;
    for (const name of NUMBERS) {
      if (this.values[name] !== "" && Number.isFinite(Number(this.values[name]))) body[name] = Number(this.values[name]);
    }
    return body;
  }

  /** Tie the fields of a form to the settings of the same names. */
  bind(form) {
    for (const field of form.elements) {
      if (!(field.name in DEFAULTS)) continue;
      const show = () => {
        if (field.type === "checkbox") field.checked = this.values[field.name];
        else field.value = this.values[field.name];
      };
      show();
      this.onChange((name) => name === field.name && show());
      field.addEventListener("change", () => {
        // What is out of its bounds stays in the field, marked, and is not sent.
        if (field.checkValidity()) this.set(field.name, field.type === "checkbox" ? field.checked : field.value);
      });
    }
  }
}
