// Streamable HTTP: each message is a POST, whose reply is JSON or a stream. In the handshake era there is a session,
// and a stream of its own for what the server says unasked.

import { Parser, events } from "../sse.js";
import { HttpError, refused, shown, wait } from "./wire.js";

const MAX_RESUMES = 20;

export class Http {
  /** The reply of `send` is everything that answers a request: there is no other way for it. */
  replies = true;
  session = "";
  #url;
  #own;
  #on;

  /**
   * @param {string} url the endpoint
   * @param {Record<string, string>} own headers that the person adds to each request
   * @param {{sent: Function, got: Function}} on each message with how it traveled: `{how, headers, of}`,
   *   where `of` is the id of the request in whose reply it came
   */
  constructor(url, own, on) {
    this.#url = url;
    this.#own = own;
    this.#on = on;
  }

  async open() {}

  /** Send a message, and hand on what comes back until the reply is over. */
  async send(message, headers, signal) {
    const response = await this.#post(message, headers, signal);
    this.session = response.headers.get("mcp-session-id") ?? this.session;
    const how = { how: `HTTP ${response.status}`, status: response.status, headers: shown(response.headers), of: message.id };
    const type = response.headers.get("content-type") ?? "";
    if (type.startsWith("text/event-stream")) {
      await this.#follow(response, message.id, headers, signal);
    } else if (type.startsWith("application/json")) {
      const copy = response.clone();
      const answer = await response.json();
      const mine = Array.isArray(answer) || (answer.jsonrpc && message.id !== undefined);
      if (!mine && !response.ok) throw await refused(copy);
      if (mine) this.#hand(answer, how);
    } else if (!response.ok) {
      throw await refused(response);
    }
  }

  /** Read a stream up to the answer, and take it up again where it was cut. */
  async #follow(first, id, headers, signal) {
    const parser = new Parser();
    let response = first;
    for (let resumes = 0; resumes < MAX_RESUMES; resumes += 1) {
      if (await this.#read(response, parser, id)) return;
      if (!this.session || !parser.lastEventId) return;
      await wait(parser.retryMs ?? 1_000, signal);
      response = await this.#get(headers, parser.lastEventId, signal);
      if (!response.ok) throw await refused(response);
    }
  }

  /** Hand on the messages of a stream. True once the answer to this request came. */
  async #read(response, parser, id) {
    const how = { how: "stream", headers: shown(response.headers), of: id };
    for await (const event of events(response, parser)) {
      if (!event.data) continue;
      const received = JSON.parse(event.data);
      this.#hand(received, event.id ? { ...how, eventId: event.id } : how);
      const all = Array.isArray(received) ? received : [received];
      if (id !== undefined && all.some((each) => each.id === id && !each.method)) return true;
    }
    return false;
  }

  #hand(received, how) {
    for (const each of Array.isArray(received) ? received : [received]) this.#on.got(each, how);
  }

  /** The server's own stream. Returns if the server offers none, throws when it is lost. */
  async listen(headers, signal) {
    const parser = new Parser();
    while (this.session) {
      const response = await this.#get(headers(), parser.lastEventId, signal);
      if (response.status === 404) throw new Error("The session is over.");
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

  #heads(headers) {
    return { ...headers, ...(this.session ? { "mcp-session-id": this.session } : {}), ...this.#own };
  }

  async #post(message, headers, signal) {
    const head = this.#heads({ "content-type": "application/json", accept: "application/json, text/event-stream", ...headers });
    this.#on.sent(message, { how: `POST ${new URL(this.#url, document.baseURI).pathname}`, headers: head });
    return fetch(this.#url, { method: "POST", headers: head, body: JSON.stringify(message), signal });
  }

  async #get(headers, lastEventId, signal) {
    const head = this.#heads({ ...headers, accept: "text/event-stream", ...(lastEventId ? { "last-event-id": lastEventId } : {}) });
    return fetch(this.#url, { headers: head, signal, cache: "no-store" });
  }
}

/** HTTP+SSE of 2024-11-05: one stream from the server, which says first where to post. */
export class HttpSse {
  replies = false;
  session = "";
  #url;
  #own;
  #on;
  #posts = "";
  #over = new AbortController();

  /** As for `Http`; the URL is that of the stream. */
  constructor(url, own, on) {
    this.#url = url;
    this.#own = own;
    this.#on = on;
  }

  async open(signal) {
    const stop = AbortSignal.any([signal, this.#over.signal]);
    const response = await fetch(this.#url, { headers: { ...this.#own, accept: "text/event-stream" }, signal: stop, cache: "no-store" });
    if (!response.ok) throw await refused(response);
    await new Promise((resolve, reject) => {
      this.ended = this.#read(response, resolve);
      this.ended.then(() => reject(new Error("The stream ended at once.")), reject);
    });
  }

  async #read(response, ready) {
    const how = { how: "stream", headers: shown(response.headers) };
    for await (const event of events(response)) {
      if (event.type === "endpoint") {
        this.#posts = new URL(event.data, new URL(this.#url, document.baseURI)).href;
        ready();
      } else if (event.data) this.#on.got(JSON.parse(event.data), how);
    }
  }

  async send(message, _, signal) {
    const headers = { "content-type": "application/json", ...this.#own };
    this.#on.sent(message, { how: `POST ${new URL(this.#posts).pathname}`, headers });
    const response = await fetch(this.#posts, { method: "POST", headers, body: JSON.stringify(message), signal });
    if (!response.ok) throw await refused(response);
  }

  /** Resolves when the stream is over. */
  async listen() {
    await this.ended;
    throw new Error("The server closed the connection.");
  }

  async close() {
    this.#over.abort(new Error("Disconnected."));
  }
}

/** Whether an error says that the person must sign in. */
export const unauthorized = (error) => error instanceof HttpError && (error.status === 401 || error.status === 403);
