// A client for Millstream's hub, for browsers and Node.js 22 or later. Import it from a server, `/hub.js`, or copy this
// file, which imports nothing. The guide "Live pages" explains it.
//
// The connection is a WebSocket, or else an event stream for each subscription. It reconnects with back-off and jitter,
// and each subscription resumes after its own last event, so no event is lost or repeated. If that isn't possible, the
// server sends a gap.

const SILENCE_MS = 45_000; // The server sends something every 15 seconds at most.
const STALE_MS = 20_000; // After waking up, a connection that has been silent for longer isn't trusted.
const OPEN_MS = 15_000;
const PING_MS = 20_000;
const REPLY_MS = 15_000;
const MIN_WAIT_MS = 500;
const MAX_WAIT_MS = 15_000;
const STABLE_MS = 2_000; // A connection that ends earlier counts as a failure.
const MAX_CHANNELS = 16; // on one WebSocket
const INVALID_PARAMS = -32602;
const OVERLOADED = -32000;
const UPGRADE_REQUIRED = 426;
const TOO_SLOW = "This page was too slow, so the server disconnected it.";
/** @type {State} */
const CONNECTING = { state: "connecting", reason: "" };
/** @type {State} */
const OPEN = { state: "open", reason: "" };

/** @typedef {{type: string, data: string, id: string}} ServerEvent */
/**
 * @typedef {object} State
 * @property {"connecting" | "open" | "waiting" | "offline"} state
 * @property {string} reason why it isn't open
 * @property {number} [status] HTTP status of the response, if the server sent one
 * @property {boolean} [refused] whether the hub refused the request itself, so that repeating it won't help
 */
/**
 * @typedef {object} HubEvent
 * @property {string} channel
 * @property {string} id chosen by the publisher, or else the position of the event
 * @property {string} [position] position to resume from, as `from`, if it isn't the id
 * @property {string} data the text, or the JSON of anything else
 * @property {string} [event] name of the event
 * @property {{name?: string, subject?: string, issuer?: string, email?: string}} [user] who published it, if known
 */
/** @typedef {{client_id: string, name: string, since: number, user?: HubEvent["user"]}} Member */
/**
 * @typedef {object} Options
 * @property {"websocket" | "sse"} [transport] the default is "websocket", or "sse" with a token, which browsers can't send
 *   with a WebSocket. If a proxy doesn't pass WebSockets on, the connection changes to "sse".
 * @property {string | (() => string | Promise<string>)} [token] key or access token, or a function that returns a
 *   current one for each request. Pages of the same server don't need one, because browsers send their cookie.
 */
/**
 * @typedef {object} SubscribeOptions
 * @property {number} [history] how many of the newest events come first
 * @property {string} [from] id of the last event that you have. Later events come first, instead of `history`.
 * @property {string} [name] shows this client to others as a member of the channel, with this name
 */
/**
 * @typedef {object} SubscriptionEvents
 * @property {HubEvent} event
 * @property {{pattern: string, reason: string}} gap events are missing: load your state again
 * @property {{pattern: string, resumed: boolean}} ready all earlier events have arrived, now and after each reconnect
 * @property {{pattern: string, message: string}} error the server refuses the subscription
 */
/**
 * @typedef {object} HubEvents
 * @property {State} state
 * @property {SubscriptionEvents["gap"]} gap
 * @property {SubscriptionEvents["error"]} error
 * @property {{client_id: string, server?: {name: string, title?: string, version?: string}, missing_scope?: string}}
 *   connected
 */

/** A request that the server refuses. Repeating it won't help, except after `retryMs` if that isn't 0. */
export class Refused extends Error {
  /** @param {string} message @param {number} code of the WebSocket message, or HTTP status @param {number} [retryMs] */
  constructor(message, code, retryMs = 0) {
    super(message);
    this.code = code;
    this.retryMs = retryMs;
  }
}

/** A response that can't be used. */
class ResponseError extends Error {
  /** @param {Response} response @param {string} message */
  constructor(response, message) {
    super(message);
    this.status = response.status;
    this.retryMs = 1_000 * (Number(response.headers.get("retry-after")) || 0);
    const ours = response.headers.get("content-type")?.startsWith("application/problem+json");
    this.refused = Boolean(ours) && [400, 403].includes(response.status); // not by a proxy
  }
}

/** Return the time before the next attempt, with jitter, so that clients don't all return at once. @param {number} failures */
function backOff(failures, longest = MAX_WAIT_MS) {
  return Math.min(MIN_WAIT_MS * 2 ** Math.min(failures, 10), longest) * (0.5 + Math.random());
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

/** @param {Options["token"]} token @returns {Promise<Record<string, string>>} */
async function authorization(token) {
  const value = typeof token === "function" ? await token() : token;
  return value ? { authorization: `Bearer ${value}` } : {};
}

/** @template Events */
class Emitter {
  /** @type {{[Type in keyof Events]?: Array<(value: any) => void>}} */
  #handlers = {};

  /**
   * Call a function for each event of a type.
   *
   * @template {keyof Events} Type
   * @param {Type} type
   * @param {(value: Events[Type]) => void} handler
   */
  on(type, handler) {
    this.#handlers[type] = [...(this.#handlers[type] ?? []), handler];
    return this;
  }

  /** Call the handlers. An exception is only logged. @template {keyof Events} Type @param {Type} type @param {Events[Type]} value */
  emit(type, value) {
    for (const handler of this.#handlers[type] ?? []) {
      try {
        handler(value);
      } catch (error) {
        console.error(error);
      }
    }
  }
}

/** A connection that is opened again whenever it ends. Subclasses define `attempt`. */
class Connection {
  retryMs = 0; // that the server asked to wait for, at least
  /** @type {AbortController | null} */
  #stop = null;
  /** @type {AbortController | null} */
  #current = null;
  #heardAt = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #watchdog;
  /** @type {(done?: any) => void} */
  #wake = () => {};

  /** @param {(state: State) => void} onState called with each new state */
  constructor(onState) {
    this.onState = onState;
  }

  /**
   * Connect, call `opened`, and return or throw when the connection has ended.
   *
   * @param {AbortSignal} _signal
   * @param {() => void} _opened
   * @returns {Promise<void>}
   */
  async attempt(_signal, _opened) {}

  start() {
    if (this.#stop) return;
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    // Node has none of these.
    globalThis.addEventListener?.("online", () => this.retryNow(), { signal });
    globalThis.addEventListener?.("offline", () => this.drop("This device is offline."), { signal });
    const page = globalThis.document;
    page?.addEventListener("visibilitychange", () => page.visibilityState === "visible" && this.#awaken(), { signal });
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

  get stopped() {
    return this.#stop === null;
  }

  /** Note that the peer is alive. If the next sign of life takes too long, the connection is dropped. */
  alive(ms = SILENCE_MS) {
    this.#heardAt = Date.now();
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.drop("The server stopped responding."), ms);
  }

  /** End the current attempt or connection, which may be dead without a close. @param {string} reason */
  drop(reason) {
    this.#current?.abort(new Error(reason));
  }

  /** The page was hidden, frozen, or asleep, and its timers didn't run. */
  #awaken() {
    if (Date.now() - this.#heardAt > STALE_MS) this.drop("The connection was lost.");
    this.#wake();
  }

  /** @param {AbortSignal} stopped */
  async #run(stopped) {
    await null; // so that handlers which are added next get the first state
    for (let failures = 0; !stopped.aborted; failures += 1) {
      /** @type {State} */
      let end = { state: "waiting", reason: "The server ended the stream." };
      let openedAt = Number.POSITIVE_INFINITY;
      this.#current = new AbortController();
      this.retryMs = 0;
      this.onState(CONNECTING);
      this.alive(OPEN_MS);
      try {
        await this.attempt(AbortSignal.any([stopped, this.#current.signal]), () => {
          openedAt = Date.now();
          this.alive();
          this.onState(OPEN);
        });
      } catch (/** @type {any} */ error) {
        end.reason = error.name === "TypeError" ? "The server can't be reached." : error.message;
        if (error instanceof ResponseError) {
          end = { ...end, status: error.status, refused: error.refused };
          this.retryMs = error.retryMs;
        }
      }
      clearTimeout(this.#watchdog);
      if (stopped.aborted) return;
      if (Date.now() - openedAt > STABLE_MS) failures = 0;
      const longest = end.status === 401 ? 4 * MAX_WAIT_MS : MAX_WAIT_MS; // servers count failed sign-ins
      const pause = this.retryMs + backOff(failures, longest); // also offline: a local server needs no network
      if (globalThis.navigator?.onLine === false) end = { state: "offline", reason: "This device is offline." };
      const woken = new Promise((resolve) => {
        this.#wake = resolve;
      });
      const timer = setTimeout(this.#wake, pause);
      this.onState(end);
      await woken;
      clearTimeout(timer);
    }
  }
}

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
  #hasId = false;

  /** @param {string} [lastEventId] @param {boolean} [positions] whether to yield ids without an event, with empty data */
  constructor(lastEventId = "", positions = false) {
    this.lastEventId = this.#id = lastEventId;
    this.positions = positions;
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
    const isPosition = this.positions && this.#hasId;
    this.#hasId = false;
    this.lastEventId = this.#id;
    if (data.length || isPosition) yield { type, data: data.join("\n"), id: this.#id };
  }

  /** @param {string} line */
  #field(line) {
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
    if (name === "data") this.#data.push(value ?? "");
    else if (name === "event") this.#type = value ?? "";
    else if (name === "id" && !value?.includes("\0")) [this.#id, this.#hasId] = [value ?? "", true];
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

/**
 * An event stream over fetch, which reconnects and resumes. `EventSource` stops for good after an error response, and
 * doesn't expose ids without an event, or comments, whose absence reveals a dead connection.
 */
export class Feed extends Connection {
  #url;
  #onEvent;
  #parser;
  #token;

  /**
   * @param {string | URL} url URL of the stream
   * @param {(event: ServerEvent) => void} onEvent called with each event
   * @param {(state: State) => void} [onState] called with each new state
   * @param {{lastEventId?: string, token?: Options["token"], positions?: boolean}} [options]
   */
  constructor(url, onEvent, onState = () => {}, { lastEventId = "", token = "", positions = false } = {}) {
    super(onState);
    this.#url = url;
    this.#onEvent = onEvent;
    this.#parser = new Parser(lastEventId, positions);
    this.#token = token;
  }

  /** @override @param {AbortSignal} signal @param {() => void} opened */
  async attempt(signal, opened) {
    const parser = new Parser(this.#parser.lastEventId, this.#parser.positions);
    this.#parser = parser;
    const url = new URL(this.#url, globalThis.document?.baseURI);
    if (parser.lastEventId) url.searchParams.set("last_event_id", parser.lastEventId);
    const headers = { accept: "text/event-stream", ...(await authorization(this.#token)) };
    const response = await fetch(url, { headers, cache: "no-store", signal });
    const isStream = response.headers.get("content-type")?.startsWith("text/event-stream");
    if (!response.ok || !isStream) throw new ResponseError(response, await errorMessage(response));
    opened();
    try {
      for await (const event of events(response, parser, () => this.alive())) {
        if (this.stopped) return;
        if (event.type === "unavailable") throw new Error(JSON.parse(event.data).detail);
        try {
          this.#onEvent(event);
        } catch (error) {
          console.error(error); // later events are still handled
        }
      }
    } finally {
      this.retryMs = parser.retryMs ?? 0;
    }
  }
}

/**
 * Return whether a channel can match both patterns. A channel is also a pattern.
 *
 * @param {string} one
 * @param {string} other
 */
function overlap(one, other) {
  const [left, right] = [one.split("."), other.split(".")];
  for (let place = 0; ; place += 1) {
    const [a, b] = [left[place], right[place]];
    if (a === undefined || b === undefined) return a === b;
    if (a === ">" || b === ">") return true;
    if (a !== b && a !== "*" && b !== "*") return false;
  }
}

/** A subscription to a channel or pattern. @extends {Emitter<SubscriptionEvents>} */
export class Subscription extends Emitter {
  ready = false; // all earlier events have arrived
  #position = ""; // where to resume once it's ready
  #resumed = false;
  #hub;

  /** @param {Hub} hub @param {string} pattern @param {SubscribeOptions} options */
  constructor(hub, pattern, { history = 0, from = "", name = "" }) {
    super();
    this.pattern = pattern;
    this.history = history;
    this.name = name;
    this.last = from; // position or id of the last event
    this.leave = () => {};
    this.#hub = hub;
  }

  /** Unsubscribe. */
  close() {
    this.take = () => {}; // messages may still be on their way
    this.leave();
  }

  /** Handle a message of the server. @param {any} message */
  take(message) {
    const { pattern } = this;
    if (message.type === "event") {
      this.last = message.position ?? message.id; // several events can have a publisher's id
      this.#position = "";
      this.emit("event", message);
    } else if (message.type === "position") {
      // During a replay, it may be ahead of the events. The last one before the confirmation isn't.
      if (this.ready) this.last = message.id;
      else this.#position = message.id;
    } else if (message.type === "subscribed") {
      this.ready = true;
      this.last = this.#position || this.last;
      this.emit("ready", { pattern, resumed: this.#resumed });
      this.#resumed = true;
    } else {
      const [type, event] = message.error
        ? /** @type {const} */ (["error", { pattern, message: message.error.message }])
        : /** @type {const} */ (["gap", { pattern, reason: message.reason }]);
      for (const each of [this, this.#hub]) /** @type {Emitter<any>} */ (each).emit(type, event);
    }
  }
}

/**
 * A WebSocket whose subscriptions don't overlap. The server sends an event once per socket, so with overlaps, one
 * subscription would take events from the replay or the history of another.
 */
class Socket extends Connection {
  /** @type {Map<Subscription, string>} with the pattern, also closed ones until the server confirms */
  subscriptions = new Map();
  /**
   * @type {Map<number, {text: string, sent: boolean, subscription: Subscription | undefined,
   *   resolve: (reply: any) => void, reject: (error: Error) => void}>} without a reply, in the order of sending
   */
  #requests = new Map();
  /** @type {Map<Subscription, ReturnType<typeof setTimeout>>} that wait until the server has room */
  #waiting = new Map();
  #maxMessage = Number.POSITIVE_INFINITY; // in bytes
  /** @type {WebSocket | null} */
  #socket = null; // after the server's first message
  #number = 0;
  #url;
  #onConnected;

  /** @param {URL} url @param {(message: any) => void} onConnected @param {(state: State) => void} onState */
  constructor(url, onConnected, onState) {
    super(onState);
    this.#url = url;
    this.#onConnected = onConnected;
  }

  /** @param {string} pattern */
  fits(pattern) {
    const patterns = [...this.subscriptions.values()];
    return patterns.length < MAX_CHANNELS && !patterns.some((each) => overlap(each, pattern));
  }

  /** @param {Subscription} subscription */
  add(subscription) {
    this.subscriptions.set(subscription, subscription.pattern);
    if (this.#socket) this.#subscribe(subscription);
  }

  /** @param {Subscription} subscription */
  async remove(subscription) {
    if (!this.subscriptions.has(subscription)) return; // another one may have its pattern now
    this.#stopWaiting(subscription);
    if (this.#socket) await this.request({ type: "unsubscribe", channel: subscription.pattern }).catch(() => {});
    this.subscriptions.delete(subscription);
    this.#stopWaiting(subscription); // its request may have been refused since
    this.#reportOpen();
  }

  /** @override */
  retryNow() {
    super.retryNow();
    for (const subscription of [...this.#waiting.keys()]) this.#subscribe(subscription);
  }

  #reportOpen() {
    if (this.#socket && !this.stopped && this.#waiting.size === 0) this.onState(OPEN);
  }

  /** @param {Subscription} subscription */
  #stopWaiting(subscription) {
    clearTimeout(this.#waiting.get(subscription));
    this.#waiting.delete(subscription);
  }

  /**
   * Send a request, once the socket is open, and return the reply.
   *
   * @param {object} message
   * @param {Subscription} [subscription] that it starts
   * @returns {Promise<any>}
   */
  async request(message, subscription) {
    const id = ++this.#number;
    const text = JSON.stringify({ ...message, id });
    const { promise, resolve, reject } = Promise.withResolvers();
    const late = () => reject(new Error("The server didn't respond in time."));
    // The server may wait for its store before each subscription in turn. If it's gone, the connection ends.
    const timer = subscription ? undefined : setTimeout(late, REPLY_MS);
    this.#requests.set(id, { text, sent: false, subscription, resolve, reject });
    this.#send();
    return promise.finally(() => {
      clearTimeout(timer);
      this.#requests.delete(id);
    });
  }

  /** @override */
  stop() {
    super.stop();
    for (const request of this.#requests.values()) request.reject(new Error("The connection was closed."));
  }

  #send() {
    for (const request of this.#socket ? this.#requests.values() : []) {
      const fault = request.sent ? "" : this.#fault(request.text);
      if (fault) request.reject(new Refused(fault, INVALID_PARAMS));
      else if (!request.sent) this.#socket?.send(request.text);
      request.sent = true;
    }
  }

  /** Return why the server can't read a message, whose id it wouldn't find for a reply. @param {string} text */
  #fault(text) {
    if (/(?<!\\)(\\\\)*\\ud[89a-f]/.test(text)) return "The message contains half of a surrogate pair."; // escaped as JSON
    const size = new TextEncoder().encode(text).length;
    return size > this.#maxMessage ? `A message must have at most ${this.#maxMessage} bytes, not ${size}.` : "";
  }

  /** @override @param {AbortSignal} signal @param {() => void} opened */
  async attempt(signal, opened) {
    const socket = new WebSocket(String(this.#url).replace("http", "ws"));
    /** @type {ReturnType<typeof setInterval> | undefined} */
    let pings;
    try {
      await new Promise((_, reject) => {
        signal.addEventListener("abort", () => reject(signal.reason)); // a dead socket doesn't close soon
        socket.onerror = () => {}; // a close follows
        socket.onclose = ({ reason }) => reject(new Error(reason === "slow" ? TOO_SLOW : "The connection was lost."));
        socket.onmessage = ({ data }) => {
          const message = JSON.parse(data);
          this.alive();
          if (message.type !== "connected") return this.#take(message);
          const waiting = [...this.#requests]; // until the subscriptions are sent
          this.#requests.clear();
          this.#socket = socket;
          this.#maxMessage = message.max_message ?? this.#maxMessage;
          // Browsers hide the pings of the WebSocket protocol.
          pings = setInterval(() => this.request({ type: "ping" }).catch(() => {}), PING_MS);
          for (const subscription of this.subscriptions.keys()) this.#subscribe(subscription);
          for (const [id, request] of waiting) this.#requests.set(id, request);
          this.#send();
          opened();
          this.#onConnected(message);
        };
      });
    } catch (/** @type {any} */ error) {
      if (this.#socket || signal.aborted) throw error;
      const response = await fetch(this.#url, { cache: "no-store", signal }); // browsers hide the response
      const isReachable = response.status === UPGRADE_REQUIRED; // because this request didn't ask for a WebSocket
      throw new ResponseError(response, isReachable ? error.message : await errorMessage(response));
    } finally {
      socket.onmessage = socket.onclose = null;
      socket.close();
      clearInterval(pings);
      this.#socket = null;
      for (const subscription of this.subscriptions.keys()) {
        subscription.ready = false;
        this.#stopWaiting(subscription);
      }
      for (const request of this.#requests.values())
        if (request.sent) request.reject(new Error("The connection was lost."));
    }
  }

  /** @param {Subscription} subscription @param {number} [failures] */
  async #subscribe(subscription, failures = 0) {
    this.#stopWaiting(subscription);
    const { pattern, last, history, name } = subscription;
    const start = last ? { last_event_id: last } : { history };
    try {
      await this.request({ type: "subscribe", channel: pattern, ...start, ...(name && { name }) }, subscription);
      this.#reportOpen();
    } catch (/** @type {any} */ error) {
      if (!(error instanceof Refused) || this.stopped || !this.subscriptions.has(subscription)) return;
      if (error.retryMs) {
        const wait = error.retryMs + backOff(failures);
        this.#waiting.set(
          subscription,
          setTimeout(() => this.#subscribe(subscription, failures + 1), wait)
        );
        this.onState({ state: "waiting", reason: error.message });
      } else {
        this.subscriptions.delete(subscription);
        subscription.take({ error });
      }
    }
  }

  /** @param {any} message */
  #take(message) {
    const all = [...this.subscriptions.keys()];
    const on = all.find(({ pattern }) => message.channel && overlap(pattern, message.channel));
    const request = this.#requests.get(message.id);
    this.#requests.delete(message.id); // before the next message, which may come before the caller continues
    if (message.type === "event") on?.take(message);
    else if (message.type === "position") for (const each of all) each.take(message);
    else if (message.type === "gap") {
      // The server starts subscriptions one by one, in their order.
      const started = [...this.#requests.values()].find(({ subscription }) => subscription)?.subscription;
      const everywhere = !started || ["epoch", "lost"].includes(message.reason);
      for (const each of everywhere ? all : [started]) each.take(message);
    } else if (message.type === "error") {
      const { code, message: text, data } = message.error;
      request?.reject(new Refused(text, code, data?.retryAfterMs));
    } else {
      if (message.type === "subscribed") on?.take(message);
      request?.resolve(message);
    }
  }
}

/** A connection to a hub. `connect` returns one. @extends {Emitter<HubEvents>} */
export class Hub extends Emitter {
  /** Client ids of this program, as in `Member`. A WebSocket gets a new one for each connection. */
  ids = new Set();
  #base;
  #token;
  /** @type {Map<Connection, State>} */
  #connections = new Map();
  /** @type {State | undefined} */
  #shown = undefined;
  /** @type {Socket | null} the first socket, or null with event streams */
  #socket = null;

  /** @param {URL} base @param {Options} options */
  constructor(base, { token = "", transport = token ? "sse" : "websocket" }) {
    super();
    this.#base = base;
    this.#token = token;
    if (token && transport === "websocket")
      throw new TypeError("A WebSocket can't send a token. Use the transport sse.");
    if (transport === "websocket") this.#socket = this.#openSocket();
    else this.ids.add(crypto.randomUUID());
  }

  /** Whether everything is connected. */
  get open() {
    return [...this.#connections.values()].every((state) => state === OPEN);
  }

  /**
   * Subscribe to one channel or pattern. Add handlers with `on`, in the same task.
   *
   * @param {string} pattern
   * @param {SubscribeOptions} [options]
   */
  subscribe(pattern, options = {}) {
    if (pattern.includes(",")) throw new TypeError("Subscribe to each channel separately."); // `/events` would split it
    const subscription = new Subscription(this, pattern, options);
    this.#open(subscription);
    return subscription;
  }

  /**
   * Publish an event. If this fails without `Refused`, the event may have been published: repeat it with the same id,
   * after `retryMs` if the error has it.
   *
   * @param {string} channel
   * @param {unknown} data
   * @param {{event?: string, id?: string}} [options] name and id of the event
   * @returns {Promise<{id: string, subscribers: number}>}
   */
  async publish(channel, data, { event, id } = {}) {
    const message = { type: "publish", channel, data, event, event_id: id };
    const reply = await this.#request(message, "publish", { channel, data, event, id });
    return { id: reply.event_id ?? reply.id, subscribers: reply.subscribers };
  }

  /**
   * Return the members of a channel. To follow them, subscribe to `$presence.<channel>` from `event`.
   *
   * @param {string} channel
   * @returns {Promise<{members: Member[], event: string}>}
   */
  async members(channel) {
    return this.#request({ type: "members", channel }, `members?${new URLSearchParams({ channel })}`);
  }

  /** Reconnect immediately if it's waiting. */
  retryNow() {
    for (const each of this.#connections.keys()) each.retryNow();
  }

  close() {
    for (const each of this.#connections.keys()) this.#report(each, null);
  }

  /** @param {Subscription} subscription */
  #open(subscription) {
    if (!this.#socket) return this.#openFeed(subscription);
    const sockets = [...this.#connections.keys()].filter((each) => each instanceof Socket);
    const socket = sockets.find((each) => each.fits(subscription.pattern)) ?? this.#openSocket();
    subscription.leave = async () => {
      await socket.remove(subscription);
      if (socket !== this.#socket && socket.subscriptions.size === 0) this.#report(socket, null);
    };
    socket.add(subscription);
  }

  #openSocket() {
    /** @type {Socket} */
    const socket = new Socket(
      new URL("ws", this.#base),
      (message) => {
        this.ids.add(message.client_id);
        this.emit("connected", message);
      },
      (state) => {
        const isBlocked = state.status === UPGRADE_REQUIRED && this.ids.size === 0;
        if (isBlocked) this.#fallBack();
        else this.#report(socket, state);
      }
    );
    this.#start(socket);
    return socket;
  }

  /** Use event streams, because a proxy doesn't pass WebSockets on. */
  #fallBack() {
    this.#socket = null;
    this.ids.add(crypto.randomUUID());
    for (const connection of [...this.#connections.keys()]) {
      this.#report(connection, null);
      if (connection instanceof Socket)
        for (const subscription of connection.subscriptions.keys()) this.#openFeed(subscription);
    }
  }

  /** @param {Subscription} subscription */
  #openFeed(subscription) {
    const { pattern, history, name, last } = subscription;
    const client_id = [...this.ids].at(-1);
    const query = { channel: pattern, envelope: "1", history: String(history), ...(name && { name, client_id }) };
    let refusals = 0;
    /** @type {Feed} */
    const feed = new Feed(
      new URL(`events?${new URLSearchParams(query)}`, this.#base),
      ({ type, data, id }) => {
        if (data && type !== "cut") subscription.take({ ...(type === "gap" && { type }), ...JSON.parse(data) });
        if (data) return;
        subscription.take({ type: "position", id });
        if (!subscription.ready) subscription.take({ type: "subscribed" }); // a position follows the earlier events
      },
      (state) => {
        subscription.ready = false;
        refusals = state === OPEN ? 0 : refusals + (state.refused ? 1 : 0);
        const isFinal = refusals > (typeof this.#token === "function" ? 1 : 0); // it may return another token
        this.#report(feed, isFinal ? null : state);
        if (isFinal) subscription.take({ error: { message: state.reason } });
      },
      { lastEventId: last, token: this.#token, positions: true }
    );
    subscription.leave = () => this.#report(feed, null);
    this.#start(feed);
  }

  /** @param {Connection} connection */
  #start(connection) {
    this.#connections.set(connection, CONNECTING);
    connection.start();
  }

  /**
   * Emit the state of the first connection that isn't open, if it's new.
   *
   * @param {Connection} connection
   * @param {State | null} state null for a connection that is no longer needed
   */
  #report(connection, state) {
    if (state) this.#connections.set(connection, state);
    else {
      connection.stop();
      this.#connections.delete(connection);
    }
    const states = [...this.#connections.values()];
    const shown = states.find((each) => each !== OPEN) ?? states[0];
    if (shown && shown !== this.#shown) this.emit("state", shown);
    this.#shown = shown;
  }

  /** @param {object} message for the WebSocket @param {string} path @param {object} [body] @returns {Promise<any>} */
  async #request(message, path, body) {
    try {
      if (this.#socket) return await this.#socket.request(message);
    } catch (/** @type {any} */ error) {
      if (error.code === OVERLOADED) throw Object.assign(new Error(error.message), { retryMs: error.retryMs });
      if (this.#socket) throw error; // otherwise, it wasn't sent
    }
    const response = await fetch(new URL(path, this.#base), {
      method: body ? "POST" : "GET",
      headers: { ...(body && { "content-type": "application/json" }), ...(await authorization(this.#token)) },
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(REPLY_MS)
    });
    if (response.ok) return response.json();
    const error = new ResponseError(response, await errorMessage(response));
    throw error.status < 500 ? new Refused(error.message, error.status, error.retryMs) : error;
  }
}

/**
 * Connect to the hub of a server.
 *
 * @param {string | URL} [url] URL of the server; the default is the server from which this module was loaded
 * @param {Options} [options]
 */
export function connect(url = new URL(".", import.meta.url), options = {}) {
  const base = new URL(url, globalThis.document?.baseURI);
  if (!base.protocol.startsWith("http")) throw new TypeError("Pass the URL of the server.");
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return new Hub(base, options);
}
