// The chat of the page. Start at `Chat.send`; how one answer looks is `turn.js`.
//
// Nothing is stored: the conversation, the keys and an API key live as long as the page does.

import { ApiError } from "./api.js";
import { Turn } from "./turn.js";

const AUTO = "auto";
const LOOK_AGAIN_MS = 5000; // while nobody offers a model
const NEAR_END_PX = 48; // who has scrolled up farther than that is reading, and is left there

const byId = (id) => document.getElementById(id);

export class Chat {
  constructor(api) {
    this.api = api;
    this.turns = [];
    this.running = null; // AbortController of the answer that is being written
    this.isAtEnd = true; // of the conversation, which is then kept there while it grows
    this.retry = null; // what to do once an API key has been given
    this.log = byId("log");
    this.prompt = byId("prompt");
    this.model = byId("model");
  }

  start() {
    byId("composer").addEventListener("submit", (event) => this.onSubmit(event));
    byId("stop").addEventListener("click", () => this.stop());
    byId("new-chat").addEventListener("click", () => this.clear());
    byId("key-form").addEventListener("submit", (event) => this.onKey(event));
    this.prompt.addEventListener("keydown", (event) => this.onKeyDown(event));
    this.prompt.addEventListener("input", () => this.fitPrompt());
    this.model.addEventListener("focus", () => this.loadModels());
    this.log.addEventListener("drawn", () => this.follow());
    this.log.addEventListener("scroll", () => this.onScroll());
    document.addEventListener("visibilitychange", () => document.hidden || this.loadModels());
    byId("sealed").hidden = !this.api.sealer;
    byId("unsealed").hidden = Boolean(this.api.sealer);
    this.showState();
    this.loadModels();
    this.api.sealer?.prepare();
  }

  // ------------------------------------------------------------ asking

  onSubmit(event) {
    event.preventDefault();
    const text = this.prompt.value.trim();
    if (!text || this.running) return;
    this.prompt.value = "";
    this.fitPrompt();
    this.send(text);
  }

  onKeyDown(event) {
    // While an input method composes a character, Enter is its own.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  }

  send(text) {
    const turn = new Turn(text, () => this.ask(turn));
    this.turns.push(turn);
    this.log.append(turn.element);
    byId("empty").hidden = true;
    this.isAtEnd = true;
    this.follow();
    return this.ask(turn);
  }

  /** Ask for the answer of a turn, anew if there is one, and show it as it comes. */
  async ask(turn) {
    if (this.running) return;
    const running = new AbortController();
    this.running = running;
    const request = {
      model: this.model.value || AUTO,
      messages: this.messagesOf(turn),
      signal: running.signal,
    };
    turn.begin();
    this.showState();
    this.announce("Asking.");
    try {
      for await (const event of this.api.chat(request)) turn.receive(event);
      turn.end();
      this.announce(`Answer: ${turn.answer}`);
    } catch (error) {
      this.onProblem(turn, error);
    } finally {
      if (this.running === running) this.running = null;
      this.showState();
    }
  }

  onProblem(turn, error) {
    if (error.name === "AbortError") {
      turn.end("stopped");
      this.announce("Stopped.");
      return;
    }
    if (!(error instanceof ApiError)) {
      turn.fail("The answer could not be read.");
      throw error; // a fault of this page: the browser's console has its place
    }
    turn.fail(error.message);
    this.announce(`Error: ${error.message}`);
    if (error.status === 401) this.askForKey(() => this.ask(turn));
  }

  /** What is sent: the turns that were answered, because models expect roles to alternate. */
  messagesOf(turn) {
    const messages = [];
    const system = byId("system").value.trim();
    if (system) messages.push({ role: "system", content: system });
    for (const { question, answer } of this.turns.slice(0, this.turns.indexOf(turn))) {
      if (!answer) continue;
      messages.push({ role: "user", content: question }, { role: "assistant", content: answer });
    }
    return [...messages, { role: "user", content: turn.question }];
  }

  stop() {
    this.running?.abort();
    this.prompt.focus();
  }

  clear() {
    this.stop();
    this.running = null;
    for (const turn of this.turns.splice(0)) turn.element.remove();
    byId("empty").hidden = false;
    this.showState();
    this.announce("New chat.");
  }

  // ------------------------------------------------------------ models and the key

  async loadModels() {
    clearTimeout(this.again);
    try {
      this.showModels(await this.api.models());
    } catch (error) {
      if (error.status === 401) this.askForKey();
      else byId("network").textContent = error.message;
    }
  }

  showModels(models) {
    const named = models.filter(({ id }) => id !== AUTO);
    const own = named.filter(({ id, root }) => !root || root === id).map(({ id }) => id);
    const aliases = named.map(({ id }) => id).filter((id) => !own.includes(id));
    byId("nobody").hidden = models.length > 0;
    const count = `${own.length} ${own.length === 1 ? "model is" : "models are"} offered now`;
    byId("network").textContent = models.length ? count : "";
    if (!models.length) this.again = setTimeout(() => this.loadModels(), LOOK_AGAIN_MS);
    const chosen = this.model.value || AUTO;
    const groups = [
      group("Offered now", own),
      group("Other names for the best one", aliases),
    ];
    const auto = new Option("auto: the best now", AUTO);
    const isThere = chosen === AUTO || named.some(({ id }) => id === chosen);
    const gone = isThere ? [] : [new Option(`${chosen} (not offered now)`, chosen)];
    this.model.replaceChildren(auto, ...gone, ...groups.filter((g) => g.children.length));
    this.model.value = chosen;
  }

  askForKey(retry = this.retry) {
    this.retry = retry;
    byId("key-wrong").hidden = !this.api.key;
    byId("network").textContent = "";
    if (!byId("key-form").hidden) return;
    byId("key-form").hidden = false;
    byId("key").focus();
  }

  onKey(event) {
    event.preventDefault();
    this.api.key = byId("key").value.trim();
    byId("key").value = "";
    byId("key-form").hidden = true;
    this.prompt.focus();
    this.loadModels();
    const { retry } = this;
    this.retry = null;
    retry?.();
  }

  // ------------------------------------------------------------ what is seen

  showState() {
    const isRunning = this.running !== null;
    byId("send").hidden = isRunning;
    byId("stop").hidden = !isRunning;
    byId("new-chat").disabled = this.turns.length === 0;
    this.log.setAttribute("aria-busy", String(isRunning));
  }

  follow() {
    if (this.isAtEnd) this.log.scrollTop = this.log.scrollHeight;
    // While the box grows, it must not push what is being written in out of the window.
    const isGrown = this.log.clientHeight !== this.height;
    this.height = this.log.clientHeight;
    if (isGrown && document.activeElement === this.prompt) {
      byId("composer").scrollIntoView({ block: "nearest", behavior: "instant" });
    }
  }

  onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    this.isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
  }

  fitPrompt() {
    this.prompt.style.height = "auto";
    const borders = this.prompt.offsetHeight - this.prompt.clientHeight;
    this.prompt.style.height = `${this.prompt.scrollHeight + borders}px`;
  }

  /** For screen readers: whole sentences, not every piece of an answer that is being written. */
  announce(text) {
    byId("announce").textContent = text;
  }
}

function group(label, names) {
  const element = document.createElement("optgroup");
  element.label = label;
  element.append(...names.map((name) => new Option(name, name)));
  return element;
}
