// One question and its answer, as seen. Start at `Turn.receive`.

import { ApiError } from "./api.js";
import { TextView } from "./text.js";

const ID_END_CHARS = 6; // of a peer id: enough to tell donors apart; the whole one is its title
// Of an answer with its reasoning: a long book. More would make the browser slow, whatever it says.
const MAX_CHARS = 1_000_000;
const OWN_ENGINE = "self";

export class Turn {
  /** again: called when the user asks for the answer once more. */
  constructor(question, again) {
    this.question = question;
    this.element = document.getElementById("turn").content.cloneNode(true).firstElementChild;
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.part("question").textContent = question;
    this.part("again").addEventListener("click", again);
    this.reset();
  }

  /** What was answered, as far as it came. */
  get answer() {
    return this.text.text;
  }

  reset() {
    this.part("answer").replaceChildren();
    this.part("thoughts").replaceChildren();
    this.text = new TextView(this.part("answer"));
    this.thoughts = new TextView(this.part("thoughts"));
    this.servedBy = this.model = this.finish = "";
    this.usage = null;
    this.startedAt = performance.now();
    this.firstAt = this.lastAt = 0;
  }

  /** The answer was asked for. */
  begin() {
    this.reset();
    this.part("reasoning").hidden = true;
    this.part("reasoning").open = false;
    this.part("problem").hidden = true;
    this.part("again").hidden = true;
    this.part("facts").textContent = "";
    this.showWait("asking");
  }

  /** Take an event of `Api.chat`. */
  receive(event) {
    if (event.servedBy) this.servedBy = event.servedBy;
    if (event.model) this.model = event.model;
    if (event.finish) this.finish = event.finish;
    if (event.usage) this.usage = event.usage;
    if (event.wait) this.showWait(event.wait);
    if (event.text || event.reasoning) this.receiveText(event);
    this.showWho();
  }

  receiveText({ text, reasoning }) {
    this.lastAt = performance.now();
    this.firstAt ||= this.lastAt;
    if (reasoning) {
      this.part("reasoning").hidden = false;
      this.thoughts.append(reasoning);
      this.showWait("thinking");
    } else {
      this.text.append(text);
      this.showWait("");
    }
    if (this.text.text.length + this.thoughts.text.length > MAX_CHARS) {
      throw new ApiError("The answer is longer than this page can show.");
    }
  }

  /** The answer is whole, or was stopped: `how` says so. */
  end(how = "") {
    this.text.draw();
    this.thoughts.draw();
    this.showWait("");
    this.showWho();
    const cut = this.finish === "length" ? "cut at the limit of its length" : "";
    this.part("facts").textContent = [how, cut, ...this.speeds()].filter(Boolean).join(" · ");
    this.part("again").hidden = this.answer !== "";
  }

  /** There is no answer, or no more of it. */
  fail(message) {
    this.end();
    this.part("problem").hidden = false;
    this.part("problem").textContent = message;
    this.part("again").hidden = false;
  }

  speeds() {
    if (!this.firstAt) return [];
    const first = `first token after ${((this.firstAt - this.startedAt) / 1000).toFixed(2)} s`;
    if (!this.usage) return [first];
    const { completion_tokens: n } = this.usage;
    const seconds = (this.lastAt - this.firstAt) / 1000;
    const speed = n > 1 && seconds > 0 ? `${((n - 1) / seconds).toFixed(1)} tokens/s` : "";
    return [first, speed, `${n} ${n === 1 ? "token" : "tokens"}`];
  }

  showWait(reason) {
    this.part("wait").hidden = !reason;
    this.part("wait").textContent = reason ? `${reason} …` : "";
    this.element.dispatchEvent(new Event("drawn", { bubbles: true }));
  }

  showWho() {
    const who = this.part("who");
    if (!this.servedBy) {
      who.textContent = "Answer";
      return;
    }
    const isOwn = this.servedBy === OWN_ENGINE;
    const donor = isOwn ? "your own peer" : `donor …${this.servedBy.slice(-ID_END_CHARS)}`;
    who.textContent = this.model ? `${donor}, ${this.model}` : donor;
    who.title = isOwn ? "answered on this machine" : `peer id ${this.servedBy}`;
  }
}
