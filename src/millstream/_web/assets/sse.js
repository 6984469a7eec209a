// Server-sent events over fetch: a parser, and a feed that reconnects and resumes.
//
// `EventSource` doesn't expose ids without an event, the status of an error response, and comments, whose absence
// reveals a dead connection.

import { showLost, showReconnected } from "./shell/connection.js";

const SILENCE_MS = 45_000; // The server sends a comment every 15 seconds.
const WAITS_MS = [500, 1_000, 2_000, 4_000, 8_000, 15_000];

/** Parses text in chunks into events (HTML standard, 9.2.6). */
export class Parser {
  lastEventId = "";
  retryMs = null;
  #rest = "";
  #data = [];
  #type = "";
  #id = "";

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /** Yield the events that this text completes, `{type, data, id}`, and update `lastEventId`. */
  *feed(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
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

  #field(line) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (name === "data") this.#data.push(value ?? "");
    else if (name === "event") this.#type = value ?? "";
    else if (name === "id" && !value?.includes("\0")) this.#id = value ?? "";
    else if (name === "retry" && /^\d+$/.test(value ?? "")) this.retryMs = Number(value);
  }
}

/** Yield the events of a response until it ends. `alive` is called for every chunk, including comments. */
export async function* events(response, parser = new Parser(), alive = () => {}) {
  const reader = response.body.getReader();
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

/** Return the message of an error response, or its status if it has none. */
export async function errorMessage(response) {
  let message = "";
  try {
    const body = await response.json();
    message = body.detail ?? body.error?.message ?? "";
  } catch {
    // The body isn't JSON.
  }
  return message || `${`The server answered ${response.status} ${response.statusText}`.trim()}.`;
}

/** A stream that reconnects whenever it ends, and resumes after the last event. */
export class Feed {
  #url;
  #onEvent;
  #onState;
  #parser;
  #stop = null;
  /** @type {(done?: any) => void} */
  #wake = () => {};

  /**
   * @param {string} url URL of the stream
   * @param {(event: {type: string, data: string, id: string}) => void} onEvent called with each event
   * @param {(state: {state: string, reason: string, status?: number}) => void} onState called with the state: connecting,
   *   open, waiting, offline
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
    const options = { signal: this.#stop.signal };
    addEventListener("online", () => this.#wake(), options);
    addEventListener("offline", () => this.#onState({ state: "offline", reason: "This device is offline." }), options);
    this.#run(this.#stop.signal);
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

  /** Call the handler. An exception is only logged, so later events are still handled. */
  #dispatch(event) {
    try {
      this.#onEvent(event);
    } catch (error) {
      console.error(error);
    }
  }

  async #pause(ms, reason, status) {
    if (navigator.onLine) this.#onState({ state: "waiting", reason, status });
    else this.#onState({ state: "offline", reason: "This device is offline." });
    let timer = 0;
    await new Promise((resolve) => {
      this.#wake = resolve;
      if (navigator.onLine) timer = setTimeout(resolve, ms);
    });
    clearTimeout(timer);
  }
}

const STATE_NAMES = { connecting: "Connecting…", open: "Live", waiting: "Reconnecting…", offline: "Offline" };

/** Show the state of a feed in a badge, and the reason for a lost connection in the banner. `retry` reconnects. */
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
