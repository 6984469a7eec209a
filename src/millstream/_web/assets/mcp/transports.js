// The transports, their errors, and their headers.

import { events, Parser } from "../sse.js";

// Errors, headers, and helpers shared by transports and the client.

export const META = "io.modelcontextprotocol/";
const NAME_PARAMS = {
  "tools/call": "name",
  "prompts/get": "name",
  "resources/read": "uri",
  "tasks/get": "taskId",
  "tasks/update": "taskId",
  "tasks/cancel": "taskId"
};

/** A JSON-RPC error from the server. */
export class RpcError extends Error {
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
  constructor(status, message, challenge = "") {
    super(message);
    this.name = "HttpError";
    this.status = status;
    this.challenge = challenge; // WWW-Authenticate
  }
}

/** Encode a header value: unchanged if that's safe, or else as marked base64. */
function headerValue(value) {
  const text = String(value);
  const plain = /^[\x20-\x7e\t]*$/.test(text) && text.trim() === text && !/^=\?base64\?.*\?=$/.test(text);
  if (plain) return text;
  return `=?base64?${btoa(String.fromCharCode(...new TextEncoder().encode(text)))}?=`;
}

/** Return headers for the arguments whose schema has `x-mcp-header`. */
function argumentHeaders(schema, values, headers = {}) {
  for (const [name, part] of Object.entries(schema?.properties ?? {})) {
    const value = values?.[name];
    if (value == null) continue;
    if (part?.["x-mcp-header"]) headers[`Mcp-Param-${part["x-mcp-header"]}`] = headerValue(value);
    else if (part?.properties) argumentHeaders(part, value, headers);
  }
  return headers;
}

/** Return the headers of a request in the per-request era (2026-07-28). */
export function requestHeaders(revision, { method, params }, schema) {
  const headers = { "mcp-protocol-version": revision, "mcp-method": method };
  if (NAME_PARAMS[method] && params?.[NAME_PARAMS[method]] !== undefined)
    headers["mcp-name"] = headerValue(params[NAME_PARAMS[method]]);
  return { ...headers, ...(method === "tools/call" ? argumentHeaders(schema, params?.arguments) : {}) };
}

/** Check whether this page's server responds. Rejects if it can't be reached. */
export const checkServer = (signal) => fetch("livez", { cache: "no-store", signal });

export const wait = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    signal?.addEventListener("abort", stop, { once: true });
  });

/** Return an error with the message of a response, or its status if it has none. */
export async function httpError(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    const body = JSON.parse(text);
    message = body.error?.message ?? body.detail ?? body.error_description ?? "";
  } catch {
    message = text.length < 400 && !/^\s*</.test(text) ? text.trim() : "";
  }
  message ||= `${`The server answered ${response.status} ${response.statusText}`.trim()}.`;
  return new HttpError(response.status, message, response.headers.get("www-authenticate") ?? "");
}

/** Return headers as an object. */
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
   * @param {Record<string, any>} on called with each message and `{how, headers, of}`: the transport, the
   *   headers, and the id of the request in whose response it arrived
   */
  constructor(url, own, on) {
    this.#url = url;
    this.#own = own;
    this.#on = on;
  }

  async open() {}

  /** Send a message, and pass on messages until the response ends. */
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

  /** Read a stream until the response arrives, resuming it if it's interrupted. */
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

  /** Deliver the messages of a stream. Returns true once the response to request `id` arrives. */
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

  #deliver(received, how) {
    for (const each of Array.isArray(received) ? received : [received]) this.#on.got(each, how);
  }

  /** Read the stand-alone stream. Returns if the server has none, and throws if the session ends. */
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

  /** End the session. */
  async close(headers) {
    if (!this.session) return;
    const head = { ...this.#own, ...headers, "mcp-session-id": this.session };
    this.session = "";
    await fetch(this.#url, { method: "DELETE", headers: head, keepalive: true }).catch(() => {});
  }

  #allHeaders(headers) {
    return { ...headers, ...(this.session ? { "mcp-session-id": this.session } : {}), ...this.#own };
  }

  async #post(message, headers, signal) {
    const head = this.#allHeaders({
      "content-type": "application/json",
      accept: "application/json, text/event-stream",
      ...headers
    });
    this.#on.sent(message, { how: `POST ${new URL(this.#url, document.baseURI).pathname}`, headers: head });
    return fetch(this.#url, { method: "POST", headers: head, body: JSON.stringify(message), signal });
  }

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

  /** As for `Http`; `url` is the URL of the stream. */
  constructor(url, own, on) {
    this.#url = url;
    this.#own = own;
    this.#on = on;
  }

  async open(signal) {
    const stop = AbortSignal.any([signal, this.#closed.signal]);
    const response = await fetch(this.#url, {
      headers: { ...this.#own, accept: "text/event-stream" },
      signal: stop,
      cache: "no-store"
    });
    if (!response.ok) throw await httpError(response);
    await new Promise((resolve, reject) => {
      this.ended = this.#read(response, resolve);
      this.ended.then(() => reject(new Error("The stream ended before the endpoint event.")), reject);
    });
  }

  async #read(response, ready) {
    const how = { how: "stream", headers: headersOf(response.headers) };
    for await (const event of events(response)) {
      if (event.type === "endpoint") {
        this.#postUrl = new URL(event.data, new URL(this.#url, document.baseURI)).href;
        ready();
      } else if (event.data) this.#on.got(JSON.parse(event.data), how);
    }
  }

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

/** Whether an error requires the user to sign in. */
export const isUnauthorized = (error) => error instanceof HttpError && (error.status === 401 || error.status === 403);

// MCP over a WebSocket: the subprotocol `mcp`, one message per frame. Browsers can't add headers to it.

export class WebSocketTransport {
  replies = false;
  session = "";
  #url;
  #on;
  #socket = null;
  #ended = null;

  /** As for `Http`. */
  constructor(url, _, on) {
    this.#url = new URL(url, document.baseURI);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#on = on;
  }

  open(signal) {
    this.#socket = new WebSocket(this.#url, ["mcp"]);
    this.#ended = new Promise((resolve) => this.#socket.addEventListener("close", resolve));
    this.#socket.addEventListener("message", ({ data }) => {
      const received = JSON.parse(data);
      for (const each of Array.isArray(received) ? received : [received])
        this.#on.got(each, { how: "WebSocket", headers: {} });
    });
    return new Promise((resolve, reject) => {
      this.#socket.addEventListener("open", resolve);
      this.#socket.addEventListener("close", () => reject(new TypeError("The WebSocket couldn't be opened.")));
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }

  async send(message) {
    if (this.#socket.readyState !== WebSocket.OPEN) throw new TypeError("The WebSocket is closed.");
    this.#on.sent(message, { how: `WebSocket ${this.#url.pathname}`, headers: {} });
    this.#socket.send(JSON.stringify(message));
  }

  async listen() {
    const { code, reason } = await this.#ended;
    throw new Error(`The server closed the connection (${code}${reason ? `: ${reason}` : ""}).`);
  }

  async close() {
    this.#socket?.close(1000);
  }
}
