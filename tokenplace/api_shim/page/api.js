// The local API as this page uses it. Start at `Api.chat`.

import { Sealer, canSeal } from "./sealing.js";

const ROOT = "/v1";
const DONE = "[DONE]";

/** A refusal of the peer, or its silence, in words. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "" } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export class Api {
  constructor() {
    this.key = ""; // the user's API key; only ever here, in memory
    this.sealer = canSeal() ? new Sealer(() => this.publicKey()) : null;
  }

  /** Names that can be asked for now, the best first. */
  async models() {
    const { data } = await (await this.fetch("/models")).json();
    return data;
  }

  async publicKey() {
    return (await (await this.fetch("/public-key")).json()).public_key;
  }

  /**
   * Ask, and yield what comes back, as it comes: {servedBy, model}, {wait}, {text}, {reasoning},
   * {usage}, {finish}. Ends only when the answer is whole; throws `ApiError`, or `AbortError` when
   * `signal` stops it, which also stops the donor.
   */
  async *chat({ model, messages, signal }) {
    const response = await this.ask(model, messages, signal);
    yield {
      servedBy: response.headers.get("x-tokenplace-accepted-by") ?? "",
      model: response.headers.get("x-tokenplace-model") ?? "",
    };
    const open = this.sealer?.opener();
    for await (const event of sentEvents(response.body)) {
      if (event.comment !== undefined) {
        yield readComment(event.comment);
        continue;
      }
      if (event.data === DONE) return;
      let chunk = JSON.parse(event.data);
      if (chunk.error) throw new ApiError(chunk.error.message, chunk.error);
      if (chunk.encrypted) chunk = await open(chunk.data);
      yield* readChunk(chunk);
    }
    throw new ApiError("The answer broke off before its end.");
  }

  async ask(model, messages, signal) {
    const options = { model, stream: true, stream_options: { include_usage: true } };
    const post = async () => {
      const said = this.sealer ? await this.sealer.seal(messages) : { messages };
      const body = JSON.stringify({ ...options, ...said });
      const headers = { "Content-Type": "application/json" };
      return this.fetch("/chat/completions", { method: "POST", headers, body, signal });
    };
    try {
      return await post();
    } catch (error) {
      if (error.type !== "encryption_error" || !this.sealer) throw error;
      this.sealer.forgetPeer(); // it was started anew since this page was loaded: once more
      return post();
    }
  }

  async fetch(path, { headers = {}, ...options } = {}) {
    const key = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    const request = { ...options, headers: { ...headers, ...key }, credentials: "omit" };
    let response;
    try {
      response = await fetch(ROOT + path, request);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("Your peer does not answer. Does tokenplace still run?");
    }
    if (!response.ok) throw await refusalOf(response);
    return response;
  }
}

async function refusalOf(response) {
  const { error = {} } = await response.json().catch(() => ({}));
  const message = error.message ?? `The peer answered with status ${response.status}.`;
  const refusal = new ApiError(message, { status: response.status, code: error.code });
  refusal.type = error.type;
  return refusal;
}

/** Server-sent events of a body: {data} or {comment}; the latter say why there is no text yet. */
async function* sentEvents(body) {
  // Not piped through a TextDecoderStream: when a connection breaks, that drops what it still holds,
  // and so the event that says why.
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith("data: ")) yield { data: block.slice(6) };
        else if (block.startsWith(": ")) yield { comment: block.slice(2) };
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection to your peer broke off in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {}); // already broken: nothing is left to cancel
  }
}

function readComment(text) {
  const served = text.match(/^served by (\w+)$/);
  return served ? { servedBy: served[1], model: "" } : { wait: text };
}

function* readChunk({ choices = [], usage }) {
  for (const { delta = {}, finish_reason: finish } of choices) {
    if (delta.reasoning_content) yield { reasoning: delta.reasoning_content };
    if (delta.content) yield { text: delta.content };
    if (finish) yield { finish };
  }
  if (usage) yield { usage };
}
