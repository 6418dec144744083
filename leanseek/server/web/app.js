// App: the page as a whole: ties conversations, replies, settings and the server to what is on the screen.

import { Conversation } from "./conversation.js";
import { download, icon } from "./element.js";
import { total } from "./figures.js";
import { Reply } from "./reply.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { followTheme } from "./theme.js";
import { Toast } from "./toast.js";
import { Transcript } from "./transcript.js";
import { grow, isEnter } from "./turn.js";

const SAVE_EVERY_MS = 2000;
const SPOKEN_CHARACTERS = 4000;
const at = (id) => document.getElementById(id);

const toast = new Toast(at("toast"));
const store = new Store((sentence) => toast.say(sentence));
const settings = new Settings(store);
const opened = new Map(); // conversations in memory, by id: a reply goes on while another one is on show
const replies = new Map(); // what is being written, by the turn's id
const owners = new Map(); // the same turns' conversations
const refused = new Set(); // turns that failed for want of a key
let current = new Conversation();

const transcript = new Transcript(at("log"), at("scroller"), at("latest"), {
  retry: (turn) => answer(current, current.parentOf(turn), { from: turn }),
  edit: (turn, text) => ask(text, current.parentOf(turn)),
  branch,
  needsKey: (turn) => refused.has(turn.id),
  key: (value, turn) => {
    settings.key = value;
    at("key").value = value;
    learnModels();
    answer(current, current.parentOf(turn), { from: turn });
  },
  leave: () => at("question").focus(),
});
const sidebar = new Sidebar(at("conversations"), { open, rename, export: exportOne, remove });
const server = new Server(showStatus);

// Conversations

function find(id) {
  return current.id === id ? current : (opened.get(id) ?? store.load(id));
}

function open(id) {
  const conversation = find(id);
  if (!conversation) return toast.say("This conversation could not be read.");
  show(conversation);
}

function startNew() {
  show(new Conversation());
}

function show(conversation) {
  current = conversation;
  if (conversation.turns.size) history.replaceState(null, "", `#${conversation.id}`);
  else history.replaceState(null, "", location.pathname);
  closeSidebar();
  transcript.follows = true;
  draw();
  // On a phone this would bring up the keyboard over what was just opened.
  if (!matchMedia("(pointer: coarse)").matches) at("question").focus();
}

function rename(id, title) {
  const conversation = find(id);
  if (!conversation) return;
  conversation.title = title;
  store.save(conversation);
  draw();
}

function remove(id) {
  const conversation = find(id);
  for (const [turn, owner] of owners) if (owner.id === id) replies.get(turn)?.stop();
  store.remove(id);
  opened.delete(id);
  if (current.id === id) startNew();
  else draw();
  if (conversation) {
    toast.say(`“${conversation.name}” was deleted.`, "Undo", () => {
      store.save(conversation);
      show(conversation);
    });
  }
}

function exportOne(id) {
  const conversation = find(id);
  const name = (conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 40);
  download(`${name || "conversation"}.json`, store.exportText([conversation]));
}

function exportAll() {
  const all = store.list().map((entry) => find(entry.id)).filter(Boolean);
  download("leanseek-conversations.json", store.exportText(all));
}

async function importFile(file) {
  try {
    const count = store.importText(await file.text());
    toast.say(`${count} ${count === 1 ? "conversation was" : "conversations were"} imported.`);
    drawList();
  } catch (error) {
    toast.say(`Nothing was imported: ${error.message}.`);
  }
}

// Asking and answering

function ask(text, parent) {
  if (running()) return toast.say("The reply is still being written: stop it first.");
  const question = current.add(parent, "user", text);
  history.replaceState(null, "", `#${current.id}`);
  answer(current, question);
}

/** Let the model answer a question. A reply that failed without a word is replaced, any other gets a sibling. */
async function answer(conversation, question, { from } = {}) {
  if (running()) return toast.say("The reply is still being written: stop it first.");
  const isEmpty = from?.finish === "failed" && !from.content && !from.reasoning;
  const turn = isEmpty ? from : conversation.add(question, "assistant");
  const messages = conversation.messages(question, settings.values.system.trim());
  const reply = new Reply(turn, { ...settings.request(), messages }, settings.key);
  opened.set(conversation.id, conversation);
  replies.set(turn.id, reply);
  owners.set(turn.id, conversation);
  refused.delete(turn.id);
  transcript.follows = true;
  let saved = performance.now();
  let spoke = "";
  const changed = () => {
    if (conversation === current) transcript.update();
    // Told once each: read word by word, a stream is noise.
    const speaks = reply.isThinking ? "Thinking." : "Answering.";
    if (speaks !== spoke && conversation === current) announce((spoke = speaks));
    if (performance.now() - saved > SAVE_EVERY_MS) {
      saved = performance.now();
      if (opened.has(conversation.id)) store.save(conversation);
    }
  };
  const written = reply.run(changed);
  store.save(conversation);
  draw();
  await written;
  replies.delete(turn.id);
  owners.delete(turn.id);
  if (reply.status === 401) {
    refused.add(turn.id);
    at("key-field").hidden = false;
  }
  conversation.changed = Date.now();
  // Deleted meanwhile: it shall not come back.
  if (opened.has(conversation.id)) store.save(conversation);
  draw();
  if (conversation === current && !turn.error) announce(turn.finish === "stopped" ? "Stopped." : `Reply: ${spoken(turn)}`);
  if (turn.error && !reply.status) server.watch();
  if (refused.has(turn.id)) at("log").querySelector("input[name=key]")?.focus();
}

/** The reply that is being written in the conversation on show. */
function running() {
  for (const [id, owner] of owners) if (owner.id === current.id) return replies.get(id);
  return null;
}

function stop() {
  running()?.stop();
}

function branch(turn, step) {
  if (running()) return toast.say("The reply is still being written: stop it first.");
  const other = current.turnTo(turn, step);
  if (!other) return;
  store.save(current);
  transcript.follows = false;
  draw();
  const act = document.activeElement?.dataset.act ?? (step < 0 ? "back" : "forth");
  transcript.focus(other, act);
  announce(at("log").querySelector(`[data-turn="${other.id}"]`).getAttribute("aria-label"));
}

function announce(sentence) {
  at("announcer").textContent = sentence;
}

function spoken(turn) {
  const node = at("log").querySelector(`[data-turn="${turn.id}"] .markdown`);
  const text = (node?.textContent || turn.content).trim() || "nothing";
  return text.length > SPOKEN_CHARACTERS ? `${text.slice(0, SPOKEN_CHARACTERS)} …` : text;
}

// Drawing

function draw() {
  const path = current.path();
  at("empty").hidden = path.length > 0;
  at("title").textContent = current.name;
  document.title = current.title ? `${current.title} · leanseek` : "leanseek";
  at("total").textContent = total([...current.turns.values()]);
  const busy = Boolean(running());
  at("stop").hidden = !busy;
  at("send").hidden = busy;
  transcript.show(current, replies);
  drawList();
  drawSend();
}

function drawList() {
  const busy = new Set([...owners.values()].map((conversation) => conversation.id));
  sidebar.show(store.list(), current.id, busy);
}

function drawSend() {
  at("send").disabled = !at("question").value.trim();
}

function showStatus({ state, words, progress }) {
  at("status").dataset.state = state;
  at("status-words").textContent = words;
  at("status").title = words;
  at("loading").hidden = state !== "loading";
  at("loading").value = progress;
  if (state === "ready") learnModels();
}

async function learnModels() {
  const models = await server.models(settings.key);
  const [first] = models;
  const context = first?.context_length ? `${first.context_length.toLocaleString("en")} tokens of context. ` : "";
  at("about").textContent = `${context}What you write goes to this server and nowhere else.`;
  const select = at("settings-form").elements.model;
  select.replaceChildren(...models.map(({ id }) => new Option(id, id)));
  at("model-field").hidden = models.length < 2;
  const known = models.some(({ id }) => id === settings.values.model);
  // A name that was chosen elsewhere would only be refused here.
  if (!known && models.length) settings.set("model", "");
  if (models.length > 1) select.value = known ? settings.values.model : first.id;
}

// Parts of the page

function openSidebar() {
  document.body.classList.add("with-sidebar");
  at("open-sidebar").setAttribute("aria-expanded", "true");
  at("close-sidebar").focus();
}

function closeSidebar() {
  if (!document.body.classList.contains("with-sidebar")) return;
  document.body.classList.remove("with-sidebar");
  at("open-sidebar").setAttribute("aria-expanded", "false");
  at("open-sidebar").focus();
}

function listen() {
  const on = (id, kind, action) => at(id).addEventListener(kind, action);
  on("composer", "submit", (event) => {
    event.preventDefault();
    const text = at("question").value.trim();
    if (!text || running()) return;
    at("question").value = "";
    grow(at("question"));
    ask(text, current.path().at(-1));
  });
  on("question", "input", () => {
    grow(at("question"));
    drawSend();
  });
  on("question", "keydown", (event) => {
    if (isEnter(event)) {
      event.preventDefault();
      at("composer").requestSubmit();
    } else if (event.key === "ArrowUp" && !at("question").value) {
      event.preventDefault();
      at("log").lastElementChild?.focus();
    }
  });
  on("log", "keydown", (event) => {
    const turn = current.turns.get(event.target.dataset.turn);
    if (!turn || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "e" && turn.role === "user") transcript.edit(turn);
    else if (event.key === "r" && turn.role === "assistant") answer(current, current.parentOf(turn), { from: turn });
    else return;
    event.preventDefault();
  });
  on("stop", "click", stop);
  on("new", "click", startNew);
  on("export", "click", exportAll);
  on("import", "click", () => at("import-file").click());
  on("import-file", "change", async () => {
    const [file] = at("import-file").files;
    if (file) await importFile(file);
    at("import-file").value = "";
  });
  on("open-sidebar", "click", openSidebar);
  on("close-sidebar", "click", closeSidebar);
  on("shade", "click", closeSidebar);
  on("open-settings", "click", () => at("settings").showModal());
  on("settings", "click", (event) => event.target === at("settings") && at("settings").close());
  on("key", "change", () => {
    settings.key = at("key").value.trim();
    learnModels();
  });
  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
      event.preventDefault();
      startNew();
    } else if (event.key === "Escape" && !at("settings").open) {
      if (document.body.classList.contains("with-sidebar")) closeSidebar();
      else stop();
    }
  });
  addEventListener("hashchange", () => open(location.hash.slice(1)));
  addEventListener("pagehide", () => new Set(owners.values()).forEach((conversation) => store.save(conversation)));
  // The clock of thinking runs while no token comes, too.
  setInterval(() => {
    replies.forEach((reply) => reply.measure());
    if (replies.size) transcript.update();
  }, 250);
}

const ICONS = {
  "open-sidebar": "menu", "close-sidebar": "close", new: "add", "open-settings": "settings", "close-settings": "close",
  latest: "down", send: "send", stop: "stop",
};
for (const [id, name] of Object.entries(ICONS)) at(id).prepend(icon(name));
settings.bind(at("settings-form"));
settings.bind(at("composer"));
followTheme(settings, at("theme"));
at("key").value = settings.key;
at("key-field").hidden = !settings.key;
store.watch(drawList);
listen();
const kept = location.hash.length > 1 && store.load(location.hash.slice(1));
show(kept || new Conversation());
server.watch();
