// Streamable HTTP: each message is a POST, and its response is JSON or a stream. The handshake era adds a session and a
// stand-alone stream for messages of the server.

import { Parser, events } from "../sse.js";
import { HttpError, headersOf, httpError, wait } from "./wire.js";

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
