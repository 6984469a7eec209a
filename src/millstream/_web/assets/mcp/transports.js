// The transports, their errors, and their headers.

import { errorMessage, events, Parser } from "../hub.js";

// Errors, headers, and helpers shared by transports and the client.

/**
 * @typedef {object} Wire what a transport calls with each message and how it travels
 * @property {(message: Json, how: Json) => void} sent
 * @property {(message: Json, how: Json) => void} got with `{how, headers, of}`: the transport, the headers, and the id of
 *   the request in whose response the message arrived
 */
/**
 * @typedef {object} Transport
 * @property {boolean} replies whether the response to a request arrives only before `send` returns
 * @property {string} session
 * @property {(signal: AbortSignal) => Promise<unknown>} open
 * @property {(message: Json, headers: Record<string, string>, signal: AbortSignal) => Promise<void>} send
 * @property {(headers: () => Record<string, string>, signal: AbortSignal) => Promise<void>} listen
 * @property {(headers: Record<string, string>) => Promise<void>} close
 */

export const META = "io.modelcontextprotocol/";
/** @type {Record<string, string>} */
const NAME_PARAMS = {
  "tools/call": "name",
  "prompts/get": "name",
  "resources/read": "uri",
  "tasks/get": "taskId",
  "tasks/update": "taskId",
  "tasks/cancel": "taskId",
  "events/poll": "name",
  "events/stream": "name",
  "events/subscribe": "name",
  "events/unsubscribe": "name"
};

/** A JSON-RPC error from the server. */
export class RpcError extends Error {
  /**
   * @param {{code: number, message: string, data?: unknown}} error
   * @param {{status?: number, headers?: Record<string, string>}} [response]
   */
  constructor({ code, message, data }, { status = 200, headers = {} } = {}) {
    super(message);
    this.name = "RpcError";
    this.code = code;
    this.data = data;
    this.status = status; // of the HTTP response
    this.challenge = headers["www-authenticate"] ?? "";
  }
}

/** An HTTP response without an MCP message, from the server or from a proxy. */
export class HttpError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message, challenge = "") {
    super(message);
    this.name = "HttpError";
    this.status = status;
    this.challenge = challenge; // WWW-Authenticate
  }
}

/** Encode a header value: unchanged if that's safe, or else as marked base64. @param {unknown} value */
function headerValue(value) {
  const text = String(value);
  const plain = /^[\x20-\x7e\t]*$/.test(text) && text.trim() === text && !/^=\?base64\?.*\?=$/.test(text);
  if (plain) return text;
  return `=?base64?${btoa(String.fromCharCode(...new TextEncoder().encode(text)))}?=`;
}

/**
 * Return headers for the arguments whose schema has `x-mcp-header`.
 *
 * @param {Schema | undefined} schema
 * @param {Json | undefined} values
 * @param {Record<string, string>} [headers]
 */
function argumentHeaders(schema, values, headers = {}) {
  for (const [name, part] of Object.entries(schema?.properties ?? {})) {
    const value = values?.[name];
    if (value == null) continue;
    if (part?.["x-mcp-header"]) headers[`Mcp-Param-${part["x-mcp-header"]}`] = headerValue(value);
    else if (part?.properties) argumentHeaders(part, value, headers);
  }
  return headers;
}

/**
 * Return the headers of a request in the per-request era (2026-07-28).
 *
 * @param {string} revision
 * @param {Json} request
 * @param {Schema} [schema]
 */
export function requestHeaders(revision, { method, params }, schema) {
  /** @type {Record<string, string>} */
  const headers = { "mcp-protocol-version": revision, "mcp-method": method };
  if (NAME_PARAMS[method] && params?.[NAME_PARAMS[method]] !== undefined)
    headers["mcp-name"] = headerValue(params[NAME_PARAMS[method]]);
  return { ...headers, ...(method === "tools/call" ? argumentHeaders(schema, params?.arguments) : {}) };
}

/** Check whether this page's server responds. Rejects if it can't be reached. @param {AbortSignal} [signal] */
export const checkServer = (signal) => fetch("livez", { cache: "no-store", signal });

/** @type {(ms: number, signal?: AbortSignal) => Promise<void>} */
export const wait = (ms, signal) =>
  new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop); // a signal lasts longer than its waits
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop);
  });

/** Return an error with the message of a response, or its status if it has none. @param {Response} response */
export const httpError = async (response) =>
  new HttpError(response.status, await errorMessage(response), response.headers.get("www-authenticate") ?? "");

/** Return headers as an object. @param {Headers} headers */
export const headersOf = (headers) => Object.fromEntries(headers.entries());

// Streamable HTTP: each message is a POST, and its response is JSON or a stream. The handshake era adds a session and a
// stand-alone stream for server messages.

const MAX_RESUMES = 20;

export class Http {
  /** Responses to a request arrive only before `send` returns. */
  replies = true;
  session = "";
  #url;
  #own;
  #on;

  /**
   * @param {string} url the endpoint
   * @param {Record<string, string>} own headers that the user adds to each request
   * @param {Json} on called with each message and `{how, headers, of}`: the transport, the
   *   headers, and the id of the request in whose response it arrived
   */
  constructor(url, own, on) {
    this.#url = url;
    this.#own = own;
    this.#on = on;
  }

  async open() {}

  /**
   * Send a message, and pass on messages until the response ends.
   *
   * @param {Json} message
   * @param {Record<string, string>} headers
   * @param {AbortSignal} [signal]
   */
  async send(message, headers, signal) {
    const response = await this.#post(message, headers, signal);
    this.session = response.headers.get("mcp-session-id") ?? this.session;
    const how = {
      how: `HTTP ${response.status}`,
      status: response.status,
      headers: headersOf(response.headers),
      of: message.id
    };
    const type = response.headers.get("content-type") ?? "";
    if (type.startsWith("text/event-stream")) {
      await this.#follow(response, message.id, headers, signal);
    } else if (type.startsWith("application/json")) {
      const copy = response.clone();
      const answer = await response.json();
      const isReply = Array.isArray(answer) || (answer.jsonrpc && message.id !== undefined);
      if (!isReply && !response.ok) throw await httpError(copy);
      if (isReply) this.#deliver(answer, how);
    } else if (!response.ok) {
      throw await httpError(response);
    }
  }

  /**
   * Read a stream until the response arrives, resuming it if it's interrupted.
   *
   * @param {Response} first
   * @param {number | undefined} id
   * @param {Record<string, string>} headers
   * @param {AbortSignal | undefined} signal
   */
  async #follow(first, id, headers, signal) {
    const parser = new Parser();
    let response = first;
    for (let resumes = 0; resumes < MAX_RESUMES; resumes += 1) {
      if (await this.#read(response, parser, id)) return;
      if (!this.session || !parser.lastEventId) return;
      await wait(parser.retryMs ?? 1_000, signal);
      response = await this.#get(headers, parser.lastEventId, signal);
      if (!response.ok) throw await httpError(response);
    }
  }

  /**
   * Deliver the messages of a stream. Returns true once the response to request `id` arrives.
   *
   * @param {Response} response
   * @param {Parser} parser
   * @param {number} [id]
   */
  async #read(response, parser, id) {
    const how = { how: "stream", headers: headersOf(response.headers), of: id };
    for await (const event of events(response, parser)) {
      if (!event.data) continue;
      const received = JSON.parse(event.data);
      this.#deliver(received, event.id ? { ...how, eventId: event.id } : how);
      const all = Array.isArray(received) ? received : [received];
      if (id !== undefined && all.some((each) => each.id === id && !each.method)) return true;
    }
    return false;
  }

  /** @param {Json} received @param {Json} how */
  #deliver(received, how) {
    for (const each of Array.isArray(received) ? received : [received]) this.#on.got(each, how);
  }

  /**
   * Read the stand-alone stream. Returns if the server has none, and throws if the session ends.
   *
   * @param {() => Record<string, string>} headers
   * @param {AbortSignal} signal
   */
  async listen(headers, signal) {
    const parser = new Parser();
    while (this.session) {
      const response = await this.#get(headers(), parser.lastEventId, signal);
      if (response.status === 404) throw new Error("The session has ended.");
      if (!response.ok) return;
      await this.#read(response, parser);
      await wait(parser.retryMs ?? 1_000, signal);
    }
  }

  /** End the session. @param {Record<string, string>} headers */
  async close(headers) {
    if (!this.session) return;
    const head = { ...this.#own, ...headers, "mcp-session-id": this.session };
    this.session = "";
    await fetch(this.#url, { method: "DELETE", headers: head, keepalive: true }).catch(() => {});
  }

  /** @param {Record<string, string>} headers */
  #allHeaders(headers) {
    return { ...headers, ...(this.session ? { "mcp-session-id": this.session } : {}), ...this.#own };
  }

  /** @param {Json} message @param {Record<string, string>} headers @param {AbortSignal | undefined} signal */
  async #post(message, headers, signal) {
    const head = this.#allHeaders({
      "content-type": "application/json",
      accept: "application/json, text/event-stream",
      ...headers
    });
    this.#on.sent(message, { how: `POST ${new URL(this.#url, document.baseURI).pathname}`, headers: head });
    return fetch(this.#url, { method: "POST", headers: head, body: JSON.stringify(message), signal });
  }

  /** @param {Record<string, string>} headers @param {string} lastEventId @param {AbortSignal | undefined} signal */
  async #get(headers, lastEventId, signal) {
    const head = this.#allHeaders({
      ...headers,
      accept: "text/event-stream",
      ...(lastEventId ? { "last-event-id": lastEventId } : {})
    });
    return fetch(this.#url, { headers: head, signal, cache: "no-store" });
  }
}

/** HTTP+SSE of 2024-11-05: one stream from the server, whose first event is the URL for POST. */
export class HttpSse {
  replies = false;
  session = "";
  #url;
  #own;
  #on;
  #postUrl = "";
  #closed = new AbortController();

  /**
   * As for `Http`; `url` is the URL of the stream.
   *
   * @param {string} url
   * @param {Record<string, string>} own
   * @param {Wire} on
   */
  constructor(url, own, on) {
    this.#url = url;
    this.#own = own;
    this.#on = on;
  }

  /** @param {AbortSignal} signal */
  async open(signal) {
    const stop = AbortSignal.any([signal, this.#closed.signal]);
    const response = await fetch(this.#url, {
      headers: { ...this.#own, accept: "text/event-stream" },
      signal: stop,
      cache: "no-store"
    });
    if (!response.ok) throw await httpError(response);
    await /** @type {Promise<void>} */ (
      new Promise((resolve, reject) => {
        this.ended = this.#read(response, resolve);
        this.ended.then(() => reject(new Error("The stream ended before the endpoint event.")), reject);
      })
    );
  }

  /** @param {Response} response @param {() => void} ready */
  async #read(response, ready) {
    const how = { how: "stream", headers: headersOf(response.headers) };
    for await (const event of events(response)) {
      if (event.type === "endpoint") {
        this.#postUrl = new URL(event.data, new URL(this.#url, document.baseURI)).href;
        ready();
      } else if (event.data) this.#on.got(JSON.parse(event.data), how);
    }
  }

  /** @param {Json} message @param {unknown} _ @param {AbortSignal} [signal] */
  async send(message, _, signal) {
    const headers = { "content-type": "application/json", ...this.#own };
    this.#on.sent(message, { how: `POST ${new URL(this.#postUrl).pathname}`, headers });
    const response = await fetch(this.#postUrl, { method: "POST", headers, body: JSON.stringify(message), signal });
    if (!response.ok) throw await httpError(response);
  }

  /** Throw when the stream ends. */
  async listen() {
    await this.ended;
    throw new Error("The server closed the connection.");
  }

  async close() {
    this.#closed.abort(new Error("Disconnected."));
  }
}

/** Whether an error requires the user to sign in. @param {unknown} error */
export const isUnauthorized = (error) => error instanceof HttpError && (error.status === 401 || error.status === 403);

// MCP over a WebSocket: the subprotocol `mcp`, one message per frame. Browsers can't add headers to it.

export class WebSocketTransport {
  replies = false;
  session = "";
  #url;
  #on;
  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {Promise<CloseEvent> | null} */
  #ended = null;

  /** As for `Http`. @param {string} url @param {unknown} _ @param {Wire} on */
  constructor(url, _, on) {
    this.#url = new URL(url, document.baseURI);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#on = on;
  }

  /** @param {AbortSignal} signal */
  open(signal) {
    const socket = new WebSocket(this.#url, ["mcp"]);
    this.#socket = socket;
    this.#ended = new Promise((resolve) => socket.addEventListener("close", resolve));
    socket.addEventListener("message", ({ data }) => {
      const received = JSON.parse(data);
      for (const each of Array.isArray(received) ? received : [received])
        this.#on.got(each, { how: "WebSocket", headers: {} });
    });
    return new Promise((resolve, reject) => {
      socket.addEventListener("open", resolve);
      socket.addEventListener("close", () => reject(new TypeError("The WebSocket couldn't be opened.")));
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }

  /** @param {Json} message */
  async send(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) throw new TypeError("The WebSocket is closed.");
    this.#on.sent(message, { how: `WebSocket ${this.#url.pathname}`, headers: {} });
    this.#socket.send(JSON.stringify(message));
  }

  async listen() {
    const { code, reason } = await /** @type {Promise<CloseEvent>} */ (this.#ended); // `open` comes first
    throw new Error(`The server closed the connection (${code}${reason ? `: ${reason}` : ""}).`);
  }

  async close() {
    this.#socket?.close(1000);
  }
}
