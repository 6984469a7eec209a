// The hub over one WebSocket: subscriptions that resume after a reconnect, and confirmed publications. See the reference
// of /ws.

import { errorMessage, WAITS_MS } from "../sse.js";

const PING_MS = 20_000;
const ANSWER_MS = 15_000;

/** @typedef {import("../sse.js").FeedState} FeedState */
/** @typedef {{id: string, data: string, event?: string, user?: {name?: string}}} HubEvent */
/**
 * @typedef {object} Subscription
 * @property {string} [name]
 * @property {number} [history]
 * @property {(event: HubEvent) => void} hear
 * @property {(again: boolean) => void} [ready] called when all missed events have arrived
 * @property {(reason: string) => void} [failed]
 * @property {() => void} [gap]
 */

/** An error sent by the server. */
export class Refused extends Error {}

export class Hub {
  /** Client ids of this page, one for each connection. */
  ids = new Set();
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void, timer: number}>} */
  #waiting = new Map();
  #number = 0;
  /** @type {Map<string, Subscription & {last: string, begun: boolean}>} by channel */
  #wanted = new Map();
  #failures = 0;
  #timer = 0;
  #beat = 0;
  #stopped = true;
  #onState;
  #onServer;
  #probe;

  /**
   * @param {(state: FeedState) => void} onState called with each new state
   * @param {string} probe path that returns why the server rejects a WebSocket, because browsers hide the response
   * @param {(server: {name?: string, title?: string, version?: string}, missingScope: string) => void} onServer called
   *   with the server's info, and the scope that the user needs for publishing and doesn't have
   */
  constructor(onState, probe, onServer) {
    this.#onState = onState;
    this.#onServer = onServer;
    this.#probe = probe;
    addEventListener("online", () => this.now());
    addEventListener("offline", () => this.#socket?.close());
  }

  start() {
    this.#stopped = false;
    this.#open();
  }

  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
    this.#wanted.clear();
    this.#socket?.close();
  }

  /** Reconnect immediately if it's waiting. */
  now() {
    if (this.#stopped || this.#socket) return;
    clearTimeout(this.#timer);
    this.#open();
  }

  get open() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /**
   * Subscribe to a channel, and resubscribe after reconnects.
   *
   * @param {string} channel
   * @param {Subscription} options
   */
  subscribe(channel, options) {
    this.#wanted.set(channel, { last: "", begun: false, ...options });
    if (this.open) this.#subscribe(channel);
  }

  /** @param {string} channel */
  unsubscribe(channel) {
    if (this.#wanted.delete(channel) && this.open) this.#ask({ type: "unsubscribe", channel }).catch(() => {});
  }

  /**
   * Publish and wait for the confirmation. Throws `Refused` if the server rejects it, or another error.
   *
   * @param {string} channel
   * @param {unknown} data
   * @param {string} [event]
   */
  publish(channel, data, event) {
    return this.#ask({ type: "publish", channel, data, ...(event ? { event } : {}) });
  }

  /** @param {Json} message @returns {Promise<Json>} */
  #ask(message) {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) return Promise.reject(new Error("The server can't be reached."));
    const id = ++this.#number;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#settle(id, new Error("The server didn't respond in time.")), ANSWER_MS);
      this.#waiting.set(id, { resolve, reject, timer });
      socket.send(JSON.stringify({ ...message, id }));
    });
  }

  /** @param {number} id @param {Error | null} error @param {Json} [answer] */
  #settle(id, error, answer) {
    const waiting = this.#waiting.get(id);
    if (!waiting) return;
    this.#waiting.delete(id);
    clearTimeout(waiting.timer);
    if (error) waiting.reject(error);
    else waiting.resolve(answer);
  }

  #open() {
    this.#onState({ state: "connecting", reason: "" });
    const address = new URL("ws", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = new WebSocket(address);
    this.#socket = socket;
    socket.addEventListener("message", ({ data }) => this.#take(JSON.parse(data)));
    socket.addEventListener("close", ({ reason }) => this.#closed(socket, reason));
    socket.addEventListener("open", () => {
      this.#failures = 0;
      this.#onState({ state: "open", reason: "" });
      for (const channel of this.#wanted.keys()) this.#subscribe(channel);
      // Browsers hide WebSocket pings, so detect a dead connection with a ping message.
      this.#beat = setInterval(() => this.#ask({ type: "ping" }).catch(() => socket.close()), PING_MS);
    });
  }

  /** @param {string} channel */
  async #subscribe(channel) {
    const wanted = this.#wanted.get(channel);
    if (!wanted) return;
    const { name, history, last } = wanted;
    try {
      await this.#ask({
        type: "subscribe",
        channel,
        ...(name ? { name } : {}),
        ...(last ? { last_event_id: last } : history ? { history } : {})
      });
      const again = wanted.begun;
      wanted.begun = true;
      wanted.ready?.(again);
    } catch (error) {
      if (error instanceof Refused) wanted.failed?.(error.message);
    }
  }

  /** @param {Json} message */
  #take(message) {
    if (message.type === "event") {
      const wanted = this.#wanted.get(message.channel);
      if (!wanted) return;
      if (message.id) wanted.last = message.id;
      wanted.hear(/** @type {HubEvent} */ (message));
    } else if (message.type === "position") {
      for (const wanted of this.#wanted.values()) if (wanted.begun) wanted.last = message.id;
    } else if (message.type === "connected") {
      this.ids.add(message.client_id);
      this.#onServer(message.server ?? {}, message.missing_scope ?? "");
    } else if (message.type === "gap") {
      for (const wanted of this.#wanted.values()) wanted.gap?.();
    } else if (message.type === "error") this.#settle(message.id, new Refused(message.error.message));
    else this.#settle(message.id, null, message);
  }

  /** @param {WebSocket} socket @param {string} reason */
  async #closed(socket, reason) {
    if (socket !== this.#socket) return;
    this.#socket = null;
    clearInterval(this.#beat);
    for (const id of [...this.#waiting.keys()]) this.#settle(id, new Error("The connection was lost."));
    if (this.#stopped) return;
    const wait = WAITS_MS[Math.min(this.#failures++, WAITS_MS.length - 1)] * (0.75 + Math.random() / 2);
    this.#timer = setTimeout(() => this.now(), wait); // also offline, because a server on this machine needs no network
    if (!navigator.onLine) return this.#onState({ state: "offline", reason: "This device is offline." });
    this.#onState({
      state: "waiting",
      ...(reason === "slow" ? { reason: "This page was too slow, so the server disconnected it." } : await this.#why())
    });
  }

  async #why() {
    try {
      const response = await fetch(this.#probe, { cache: "no-store" });
      return response.ok
        ? { reason: "The connection was lost." }
        : { reason: await errorMessage(response), status: response.status };
    } catch {
      return { reason: "The server can't be reached." };
    }
  }
}
