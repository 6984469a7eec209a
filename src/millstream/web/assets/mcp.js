// A small MCP client over Streamable HTTP, for every revision. The handshake era has a session, a stream of its own for
// what the server says unasked, and questions that arrive as requests; the per-request era (2026-07-28) says who it is
// in every request, and its questions arrive as a result that is answered by sending the request again.

import { Parser, events } from "./sse.js";

export const REVISIONS = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

const CLIENT = { name: "millstream-inspect", version: "1" };
const CAPABILITIES = { elicitation: { form: {}, url: {} }, sampling: {}, roots: {} };
const META = "io.modelcontextprotocol/";
const MAX_ROUNDS = 100;
const MAX_RESUMES = 20;
const BEAT_MS = 5_000;
const NAMED = { "tools/call": "name", "prompts/get": "name", "resources/read": "uri" };

/** An error that the server answered with. */
export class RpcError extends Error {
  constructor({ code, message, data }) {
    super(message);
    this.name = "RpcError";
    this.code = code;
    this.data = data;
  }
}

/** A value for a header: as it is where that is safe, else in base64 between marks. */
function headerValue(value) {
  const text = String(value);
  const plain = /^[\x20-\x7e\t]*$/.test(text) && text.trim() === text && !/^=\?base64\?.*\?=$/.test(text);
  if (plain) return text;
  return `=?base64?${btoa(String.fromCharCode(...new TextEncoder().encode(text)))}?=`;
}

/** The headers that mirror arguments: properties of the schema marked with `x-mcp-header`. */
function argumentHeaders(schema, values, headers = {}) {
  for (const [name, part] of Object.entries(schema?.properties ?? {})) {
    const value = values?.[name];
    if (value === undefined || value === null) continue;
    if (part["x-mcp-header"]) headers[`Mcp-Param-${part["x-mcp-header"]}`] = headerValue(value);
    else if (part.properties) argumentHeaders(part, value, headers);
  }
  return headers;
}

/** Check whether the server is there. Rejects if it can't be reached. */
export const knock = (signal) => fetch("livez", { cache: "no-store", signal });

export const wait = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

export class Client {
  server = null; // {serverInfo, capabilities, instructions, protocolVersion}
  session = "";
  logLevel = "";
  #url;
  #revision;
  #on;
  #next = 1;
  #progress = new Map();
  #closed = new AbortController();

  /**
   * @param url the endpoint
   * @param revision one of REVISIONS
   * @param on traffic(out, message, note): each message; ask(method, params, signal): a promise of the answer to a
   *   question of the server; notified(method, params): a notification; lost(error): the open connection is lost, and
   *   this client with it
   */
  constructor(url, revision, on) {
    this.#url = url;
    this.#revision = revision;
    this.#on = on;
  }

  get handshake() {
    return this.#revision < "2026";
  }

  get revision() {
    return this.server?.protocolVersion ?? this.#revision;
  }

  /** Say hello, in the manner of the era, and begin to listen. */
  async open() {
    if (this.handshake) {
      const hello = { protocolVersion: this.#revision, capabilities: this.#capabilities(), clientInfo: CLIENT };
      this.server = await this.request("initialize", hello);
      await this.#notify("notifications/initialized");
    } else {
      const found = await this.request("server/discover", {});
      this.server = { ...found, serverInfo: found._meta?.[`${META}serverInfo`] ?? {}, protocolVersion: this.#revision };
    }
    this.#attend();
    return this.server;
  }

  /** End everything that is under way, and the session. */
  async close(reason = "Disconnected.") {
    this.#closed.abort(new Error(reason));
    if (!this.session) return;
    const headers = this.#headers({ method: "" });
    this.session = "";
    await fetch(this.#url, { method: "DELETE", headers, keepalive: true }).catch(() => {});
  }

  /** All pages of a list. */
  async list(method, key) {
    const found = [];
    let cursor;
    do {
      const page = await this.request(method, cursor ? { cursor } : {});
      found.push(...(page[key] ?? []));
      cursor = page.nextCursor;
    } while (cursor);
    return found;
  }

  /**
   * Send a request and wait for its result.
   *
   * @param options progress(params): told of each step; signal: cancels; schema: of the arguments, where some of them
   *   travel as headers
   */
  async request(method, params, options = {}) {
    if (this.handshake) return this.#round(method, params, options);
    let extra = {};
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      const result = await this.#round(method, { ...params, ...extra }, options);
      if (result.resultType !== "input_required") return result;
      extra = result.requestState === undefined ? {} : { requestState: result.requestState };
      const questions = Object.entries(result.inputRequests ?? {});
      if (questions.length) extra.inputResponses = {};
      for (const [key, question] of questions) {
        extra.inputResponses[key] = await this.#on.ask(question.method, question.params ?? {}, options.signal);
      }
    }
    throw new Error(`The server asked in more than ${MAX_ROUNDS} rounds.`);
  }

  /** Hear of the changes of a resource until the signal says otherwise; they come as notifications. */
  async watch(uri, signal) {
    if (!this.handshake) {
      await this.request("subscriptions/listen", { notifications: { resourceSubscriptions: [uri] } }, { signal });
      return;
    }
    await this.request("resources/subscribe", { uri });
    signal.addEventListener("abort", () => this.request("resources/unsubscribe", { uri }).catch(() => {}));
  }

  // One request

  async #round(method, params, { progress, signal, schema }) {
    const id = this.#next++;
    const message = { jsonrpc: "2.0", id, method, params: this.#params(params, progress ? id : undefined) };
    const headers = { ...this.#headers(message), ...(method === "tools/call" ? argumentHeaders(schema, params.arguments) : {}) };
    if (progress) this.#progress.set(id, progress);
    const stop = AbortSignal.any([this.#closed.signal, ...(signal ? [signal] : [])]);
    const cancel = () => this.handshake && this.#notify("notifications/cancelled", { requestId: id, reason: "Cancelled by the user." }).catch(() => {});
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      const answer = await this.#exchange(message, headers, stop);
      if (answer.error) throw new RpcError(answer.error);
      return answer.result;
    } catch (error) {
      if (error instanceof TypeError) this.#lose(error);
      throw error;
    } finally {
      signal?.removeEventListener("abort", cancel);
      this.#progress.delete(id);
    }
  }

  async #exchange(message, headers, signal) {
    let response = await this.#post(message, headers, signal);
    this.session = response.headers.get("mcp-session-id") ?? this.session;
    const type = response.headers.get("content-type") ?? "";
    if (type.startsWith("application/json")) {
      const answer = await response.json();
      this.#on.traffic(false, answer, response.ok ? "" : `HTTP ${response.status}`);
      return answer;
    }
    if (!type.startsWith("text/event-stream")) throw new Error(await this.#refusal(response));
    const parser = new Parser();
    for (let resumes = 0; resumes < MAX_RESUMES; resumes += 1) {
      const answer = await this.#read(response, parser, message.id);
      if (answer) return answer;
      if (!this.handshake || !parser.lastEventId) break;
      await wait(parser.retryMs ?? 1_000, signal);
      response = await this.#get(parser.lastEventId, signal);
      if (!response.ok) throw new Error(await this.#refusal(response));
    }
    throw new Error("The stream ended without an answer.");
  }

  /** Read a stream until the answer to a request; undefined where the stream ends before. */
  async #read(response, parser, id) {
    for await (const event of events(response, parser)) {
      if (!event.data) continue;
      const received = JSON.parse(event.data);
      for (const message of Array.isArray(received) ? received : [received]) {
        this.#on.traffic(false, message, "stream");
        if (message.id === id && !message.method && id !== undefined) return message;
        this.#take(message);
      }
    }
    return undefined;
  }

  #take(message) {
    if (message.method && message.id !== undefined) this.#answer(message);
    else if (message.method === "notifications/progress") this.#progress.get(message.params.progressToken)?.(message.params);
    else if (message.method) this.#on.notified(message.method, message.params ?? {});
  }

  /** A question of the handshake era: a request, whose answer is posted. */
  async #answer({ id, method, params }) {
    let reply;
    try {
      reply = { result: method === "ping" ? {} : await this.#on.ask(method, params ?? {}, this.#closed.signal) };
    } catch (error) {
      reply = { error: { code: -32601, message: error.message } };
    }
    await this.#send({ jsonrpc: "2.0", id, ...reply }).catch(() => {});
  }

  async #notify(method, params) {
    await this.#send({ jsonrpc: "2.0", method, ...(params ? { params } : {}) });
  }

  async #send(message) {
    const response = await this.#post(message, this.#headers(message), this.#closed.signal);
    if (!response.ok) throw new Error(await this.#refusal(response));
  }

  // What the server says unasked, and whether it is still there

  /** Notice when the server goes away: its stream ends, or if it offers none, it no longer answers. */
  async #attend() {
    const signal = this.#closed.signal;
    try {
      await this.#listen(signal);
      for (;;) {
        await wait(BEAT_MS, signal);
        await knock(signal);
      }
    } catch (error) {
      this.#lose(error);
    }
  }

  /** Doesn't end the session: either it's gone already, or there's nobody to tell. */
  #lose(error) {
    if (!this.server || this.#closed.signal.aborted) return;
    this.session = "";
    this.close("The connection to the server was lost.");
    this.#on.lost(error);
  }

  /** Read the server's own stream. Returns if the server offers none, throws when the stream is lost. */
  async #listen(signal) {
    if (!this.handshake) {
      const notifications = { toolsListChanged: true, promptsListChanged: true, resourcesListChanged: true };
      try {
        await this.request("subscriptions/listen", { notifications }, { signal });
      } catch (error) {
        if (error instanceof RpcError) return;
        throw error;
      }
      throw new Error("The server closed the connection.");
    }
    const parser = new Parser();
    while (this.session) {
      const response = await this.#get(parser.lastEventId, signal);
      if (response.status === 404) throw new Error("The session is over.");
      if (!response.ok) return;
      await this.#read(response, parser);
      await wait(parser.retryMs ?? 1_000, signal);
    }
  }

  // The wire

  #capabilities() {
    if (this.#revision < "2025-06-18") return { sampling: {}, roots: {} };
    return this.#revision < "2025-11-25" ? { ...CAPABILITIES, elicitation: {} } : CAPABILITIES;
  }

  #params(params, token) {
    const meta = { ...params._meta };
    if (token !== undefined) meta.progressToken = token;
    if (!this.handshake) {
      meta[`${META}protocolVersion`] = this.#revision;
      meta[`${META}clientInfo`] = CLIENT;
      meta[`${META}clientCapabilities`] = this.#capabilities();
      if (this.logLevel) meta[`${META}logLevel`] = this.logLevel;
    }
    return Object.keys(meta).length ? { ...params, _meta: meta } : params;
  }

  #headers({ method, params }) {
    const headers = { "content-type": "application/json", accept: "application/json, text/event-stream" };
    if (!this.handshake) {
      headers["mcp-protocol-version"] = this.#revision;
      headers["mcp-method"] = method;
      if (NAMED[method]) headers["mcp-name"] = headerValue(params[NAMED[method]]);
      return headers;
    }
    if (this.session) headers["mcp-session-id"] = this.session;
    if (this.server && this.revision >= "2025-06-18") headers["mcp-protocol-version"] = this.revision;
    return headers;
  }

  async #post(message, headers, signal) {
    this.#on.traffic(true, message, this.session ? "session" : "");
    return fetch(this.#url, { method: "POST", headers, body: JSON.stringify(message), signal });
  }

  async #get(lastEventId, signal) {
    const headers = { ...this.#headers({ method: "" }), accept: "text/event-stream" };
    if (lastEventId) headers["last-event-id"] = lastEventId;
    return fetch(this.#url, { headers, signal, cache: "no-store" });
  }

  async #refusal(response) {
    const text = await response.text();
    try {
      return JSON.parse(text).error.message;
    } catch {
      return text.trim() || `The server answered ${response.status} ${response.statusText}`.trim() + ".";
    }
  }
}
