// Server-sent events over fetch: a parser, and a feed that reconnects and resumes.
//
// `EventSource` doesn't expose ids without an event, the status of an error response, and comments, whose absence
// reveals a dead connection.

import { showLost, showReconnected } from "./shell/connection.js";

const SILENCE_MS = 45_000; // The server sends a comment every 15 seconds.
export const WAITS_MS = [500, 1_000, 2_000, 4_000, 8_000, 15_000];

/** @typedef {{type: string, data: string, id: string}} ServerEvent */
/** @typedef {{state: "connecting" | "open" | "waiting" | "offline", reason: string, status?: number}} FeedState */

/** Parses text in chunks into events (HTML standard, 9.2.6). */
export class Parser {
  lastEventId = "";
  /** @type {number | null} */
  retryMs = null;
  #rest = "";
  #lastCr = ""; // its LF may follow
  /** @type {string[]} */
  #data = [];
  #type = "";
  #id = "";

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /** Yield the events that this text completes, `{type, data, id}`, and update `lastEventId`. @param {string} text */
  *feed(text) {
    const whole = this.#lastCr + text;
    this.#lastCr = whole.endsWith("\r") ? "\r" : "";
    const lines = whole.slice(0, whole.length - this.#lastCr.length).split(/\r\n|\n|\r/);
    lines[0] = this.#rest + lines[0]; // which isn't split again
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") yield* this.#dispatch();
      else this.#field(line);
    }
  }

  *#dispatch() {
    const [type, data] = [this.#type || "message", this.#data];
    this.#data = [];
    this.#type = "";
    this.lastEventId = this.#id;
    if (data.length) yield { type, data: data.join("\n"), id: this.#id };
  }

  /** @param {string} line */
  #field(line) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
    if (name === "data") this.#data.push(value ?? "");
    else if (name === "event") this.#type = value ?? "";
    else if (name === "id" && !value?.includes("\0")) this.#id = value ?? "";
    else if (name === "retry" && /^\d+$/.test(value ?? "")) this.retryMs = Number(value);
  }
}

/**
 * Yield the events of a response until it ends. `alive` is called for every chunk, including comments.
 *
 * @param {Response} response
 */
export async function* events(response, parser = new Parser(), alive = () => {}) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader(); // every response of `fetch` has one
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      yield* parser.feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Return the message of an error response, or its status if it has none. @param {Response} response */
export async function errorMessage(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    const body = JSON.parse(text);
    message = body.detail ?? body.error?.message ?? body.error_description;
  } catch {
    if (text.length < 400 && !/^\s*</.test(text)) message = text.trim();
  }
  return message || `${`The server answered ${response.status} ${response.statusText}`.trim()}.`;
}

/** A stream that reconnects whenever it ends, and resumes after the last event. */
export class Feed {
  #url;
  #onEvent;
  #onState;
  #parser;
  /** @type {AbortController | null} */
  #stop = null;
  /** @type {(done?: any) => void} */
  #wake = () => {};

  /**
   * @param {string} url URL of the stream
   * @param {(event: ServerEvent) => void} onEvent called with each event
   * @param {(state: FeedState) => void} onState called with each new state
   */
  constructor(url, onEvent, onState = () => {}) {
    this.#url = url;
    this.#onEvent = onEvent;
    this.#onState = onState;
    this.#parser = new Parser();
  }

  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    addEventListener("online", () => this.#wake(), { signal });
    addEventListener("offline", () => this.#onState({ state: "offline", reason: "This device is offline." }), {
      signal
    });
    this.#run(signal);
  }

  /** Reconnect immediately if it's waiting. */
  retryNow() {
    this.#wake();
  }

  stop() {
    this.#stop?.abort();
    this.#stop = null;
    this.#wake();
  }

  /** @param {AbortSignal} stopped */
  async #run(stopped) {
    for (let failures = 0; !stopped.aborted; failures += 1) {
      const attempt = { open: false, retryAfterMs: 0, status: 0 };
      let reason = "The server ended the stream.";
      this.#onState({ state: "connecting", reason: "" });
      try {
        await this.#listen(stopped, attempt);
      } catch (/** @type {any} */ error) {
        reason = error.name === "TypeError" ? "The server can't be reached." : error.message;
      }
      if (stopped.aborted) return;
      if (attempt.open) failures = 0;
      const wait = this.#parser.retryMs ?? WAITS_MS[Math.min(failures, WAITS_MS.length - 1)];
      // With jitter, so that pages don't all reconnect at once.
      await this.#pause(Math.max(attempt.retryAfterMs, wait) * (0.75 + Math.random() / 2), reason, attempt.status);
    }
  }

  /** @param {AbortSignal} stopped @param {{open: boolean, retryAfterMs: number, status: number}} attempt */
  async #listen(stopped, attempt) {
    const url = new URL(this.#url, document.baseURI);
    if (this.#parser.lastEventId) url.searchParams.set("last_event_id", this.#parser.lastEventId);
    this.#parser = new Parser(this.#parser.lastEventId);
    const silent = new AbortController();
    let timer = 0;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => silent.abort(new Error("The server stopped responding.")), SILENCE_MS);
    };
    const goOffline = () => silent.abort(new Error("This device is offline."));
    addEventListener("offline", goOffline, { signal: stopped });
    alive();
    try {
      const signal = AbortSignal.any([stopped, silent.signal]);
      const response = await fetch(url, { headers: { accept: "text/event-stream" }, cache: "no-store", signal });
      if (!response.ok) {
        attempt.status = response.status;
        attempt.retryAfterMs = 1_000 * (Number(response.headers.get("retry-after")) || 0);
        throw new Error(await errorMessage(response));
      }
      attempt.open = true;
      this.#onState({ state: "open", reason: "" });
      for await (const event of events(response, this.#parser, alive)) this.#dispatch(event);
    } finally {
      clearTimeout(timer);
      removeEventListener("offline", goOffline);
    }
  }

  /** Call the handler. An exception is only logged, so later events are still handled. @param {ServerEvent} event */
  #dispatch(event) {
    try {
      this.#onEvent(event);
    } catch (error) {
      console.error(error);
    }
  }

  /** @param {number} ms @param {string} reason @param {number} status */
  async #pause(ms, reason, status) {
    if (navigator.onLine) this.#onState({ state: "waiting", reason, status });
    else this.#onState({ state: "offline", reason: "This device is offline." });
    let timer = 0;
    // Also offline, because a server on this machine needs no network.
    await new Promise((resolve) => {
      this.#wake = resolve;
      timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }
}

const STATE_NAMES = { connecting: "Connecting…", open: "Live", waiting: "Reconnecting…", offline: "Offline" };

/**
 * Show the state of a feed in a badge, and the reason for a lost connection in the banner. `retry` reconnects.
 *
 * @param {HTMLElement} badge
 * @param {FeedState} state
 * @param {(() => void) | null} [retry]
 */
export function showState(badge, { state, reason, status = 0 }, retry = null) {
  badge.textContent = STATE_NAMES[state];
  badge.className = `badge state ${{ open: "good", connecting: "", waiting: "warn", offline: "bad" }[state]}`;
  if (state === "open") showReconnected();
  else if (status === 401)
    showLost("You're signed out. Sign in again to continue.", () => location.reload(), "Sign in");
  else if (reason)
    showLost(
      `${reason} ${state === "waiting" ? "This page continues when it's back." : "This page continues when you're back online."}`,
      state === "waiting" ? retry : null
    );
}
