// A small MCP client for every revision, over any of the transports. In the handshake era questions of the server arrive
// as requests; in the per-request era (2026-07-28) a request says who sends it, and questions arrive as a result that
// is answered by sending the request again.

import { META, RpcError, knock, mirrored, wait } from "./wire.js";

export const REVISIONS = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

const CLIENT = { name: "millstream-inspect", version: "1" };
const MAX_ROUNDS = 100;
const BEAT_MS = 5_000;
const LISTS = { toolsListChanged: true, promptsListChanged: true, resourcesListChanged: true };

/** What lists and forms depend on, of what a server says of itself. */
const told = ({ capabilities, instructions, _meta }) => JSON.stringify([capabilities, instructions, _meta?.[`${META}serverInfo`]]);

/**
 * @typedef {object} Events what a client tells
 * @property {(message: object, how: object) => void} sent each message that goes out
 * @property {(message: object, how: object) => void} got each message that comes in
 * @property {(message: object, error: Error) => void} failed a request that got no answer
 * @property {(method: string, params: object, signal: AbortSignal) => Promise<object>} ask a question of the server
 * @property {(method: string, params: object) => void} notified a notification
 * @property {(error: Error) => void} lost the connection is lost, and this client with it
 */

export class Client {
  server = null; // {serverInfo, capabilities, instructions, protocolVersion}
  logLevel = "";
  #make;
  #transport;
  #revision;
  #capabilities;
  #on;
  #next = 1;
  #pending = new Map();
  #progress = new Map();
  #notified = new Map(); // id of a request -> handler of its notifications
  #closed = new AbortController();

  /**
   * @param {(on: object) => object} transport makes the line: `{replies, session, open, send, listen, close}`
   * @param {string} revision one of REVISIONS
   * @param {object} capabilities what the person can do: elicitation, sampling, roots
   * @param {Events} on
   */
  constructor(transport, revision, capabilities, on) {
    this.#on = on;
    this.#revision = revision;
    this.#capabilities = capabilities;
    this.#make = transport;
    this.#transport = transport({
      sent: on.sent,
      got: (message, how) => {
        on.got(message, how);
        this.#take(message, how);
      },
    });
  }

  get handshake() {
    return this.#revision < "2026";
  }

  get revision() {
    return this.server?.protocolVersion ?? this.#revision;
  }

  get session() {
    return this.#transport.session;
  }

  /** Say hello, in the manner of the era, and begin to listen. */
  async open() {
    await this.#transport.open(this.#closed.signal);
    if (this.handshake) {
      this.server = await this.request("initialize", { protocolVersion: this.#revision, capabilities: this.#able(), clientInfo: CLIENT });
      await this.notify("notifications/initialized");
    } else {
      const found = await this.request("server/discover", {});
      this.server = { ...found, serverInfo: found._meta?.[`${META}serverInfo`] ?? {}, protocolVersion: this.#revision };
    }
    // A server without a version says "0", for the protocol wants one.
    if (this.server.serverInfo?.version === "0") this.server = { ...this.server, serverInfo: { ...this.server.serverInfo, version: "" } };
    this.#attend();
    return this.server;
  }

  /** End everything that is under way, and the session. */
  async close(reason = "Disconnected.") {
    this.#closed.abort(new Error(reason));
    await this.#transport.close(this.#headers({}));
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
   * @param {string} method
   * @param {object} params
   * @param {{progress?: (params: object) => void, notified?: (method: string, params: object) => void, signal?: AbortSignal, schema?: object}} options
   *   `progress` receives each step; `notified` receives its other notifications; `signal` cancels; `schema` is that
   *   of the arguments, where some of them travel as headers
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

  /** Send a notification. */
  async notify(method, params) {
    const message = { jsonrpc: "2.0", method, ...(params ? { params } : {}) };
    await this.#transport.send(message, this.#headers(message), this.#closed.signal);
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

  async #round(method, params, { progress, notified, signal, schema }) {
    const id = this.#next++;
    const message = { jsonrpc: "2.0", id, method, params: this.#params(params, progress ? id : undefined) };
    if (progress) this.#progress.set(id, progress);
    if (notified) this.#notified.set(id, notified);
    const stop = AbortSignal.any([this.#closed.signal, ...(signal ? [signal] : [])]);
    const cancel = () => this.#cancel(id);
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      return await this.#answer(message, this.#headers(message, schema), stop);
    } catch (error) {
      if (!(error instanceof RpcError)) this.#on.failed(message, error);
      if (error instanceof TypeError) this.#lose(error);
      throw error;
    } finally {
      signal?.removeEventListener("abort", cancel);
      this.#progress.delete(id);
      this.#notified.delete(id);
      this.#pending.delete(id);
    }
  }

  #answer(message, headers, signal) {
    return new Promise((resolve, reject) => {
      this.#pending.set(message.id, ({ error, result }, how) => (error ? reject(new RpcError(error, how)) : resolve(result)));
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      if (signal.aborted) return reject(signal.reason);
      const over = () => this.#transport.replies && reject(new Error("The stream ended without an answer."));
      this.#transport.send(message, headers, signal).then(over, reject);
    });
  }

  /** Over HTTP of the per-request era, closing the stream is the cancellation. */
  #cancel(requestId) {
    if (!this.handshake && this.#transport.replies) return;
    this.notify("notifications/cancelled", { requestId, reason: "Canceled by the user." }).catch(() => {});
  }

  #take(message, how) {
    if (message.method && message.id !== undefined) this.#reply(message);
    else if (message.method === "notifications/progress") {
      this.#progress.get(message.params.progressToken)?.(message.params);
      this.#on.notified(message.method, message.params);
    } else if (message.method) {
      this.#notified.get(message.params?._meta?.[`${META}subscriptionId`])?.(message.method, message.params);
      this.#on.notified(message.method, message.params ?? {});
    } else this.#pending.get(message.id)?.(message, how);
  }

  /** A question of the handshake era: a request, whose answer is sent. */
  async #reply({ id, method, params }) {
    let reply;
    try {
      reply = { result: method === "ping" ? {} : await this.#on.ask(method, params ?? {}, this.#closed.signal) };
    } catch (error) {
      reply = { error: { code: error.code ?? -32601, message: error.message } };
    }
    const message = { jsonrpc: "2.0", id, ...reply };
    await this.#transport.send(message, this.#headers(message), this.#closed.signal).catch(() => {});
  }

  // What the server says unasked, and whether it is still there

  /** Notice when the server goes away: its stream ends, or if it offers none, it no longer answers. */
  async #attend() {
    const signal = this.#closed.signal;
    try {
      await this.#listen(signal);
      const before = this.handshake ? "" : told(this.server);
      for (;;) {
        await wait(BEAT_MS, signal);
        if (this.handshake) await knock(signal);
        else if ((await this.#says(signal)) !== before) throw new Error("The server isn't the one that it was.");
      }
    } catch (error) {
      this.#lose(error);
    }
  }

  /** Name, version, and capabilities now. This request is ours, so it isn't among the messages. */
  #says(signal) {
    const message = { jsonrpc: "2.0", id: 0, method: "server/discover", params: this.#params({}) };
    return new Promise((resolve, reject) => {
      const got = ({ result, error }) => (error ? reject(new RpcError(error)) : resolve(told(result)));
      const over = () => reject(new Error("The server gave no answer."));
      this.#make({ sent: () => {}, got }).send(message, this.#headers(message), signal).then(over, reject);
    });
  }

  async #listen(signal) {
    const lists = this.#changing();
    if (this.handshake || !this.#transport.replies) {
      if (!this.handshake && lists) this.request("subscriptions/listen", { notifications: lists }, { signal }).catch(() => {});
      await this.#transport.listen(() => this.#headers({}), signal);
      return;
    }
    if (!lists) return;
    try {
      await this.request("subscriptions/listen", { notifications: lists }, { signal });
    } catch (error) {
      if (error instanceof RpcError) return;
      throw error;
    }
    throw new Error("The server closed the connection.");
  }

  /** The lists that the server says may change. Where none does, it would answer at once, as if it were going. */
  #changing() {
    const names = Object.keys(LISTS).filter((name) => this.server.capabilities?.[name.replace("ListChanged", "")]?.listChanged);
    return names.length ? Object.fromEntries(names.map((name) => [name, true])) : null;
  }

  /** Doesn't end the session: either it's gone already, or there's nobody to tell. */
  #lose(error) {
    if (!this.server || this.#closed.signal.aborted) return;
    this.#transport.session = "";
    this.close("The connection to the server was lost.");
    this.#on.lost(error);
  }

  #able() {
    const { elicitation, ...others } = this.#capabilities;
    if (!elicitation || this.#revision < "2025-06-18") return others;
    return { ...others, elicitation: this.#revision < "2025-11-25" ? {} : { form: {}, url: {} } };
  }

  #params(params, token) {
    const meta = { ...params?._meta };
    if (token !== undefined) meta.progressToken = token;
    if (!this.handshake) {
      meta[`${META}protocolVersion`] = this.#revision;
      meta[`${META}clientInfo`] = CLIENT;
      meta[`${META}clientCapabilities`] = this.#able();
      if (this.logLevel) meta[`${META}logLevel`] = this.logLevel;
    }
    return Object.keys(meta).length ? { ...params, _meta: meta } : params;
  }

  #headers(message, schema) {
    if (!this.handshake) return message.method ? mirrored(this.#revision, message, schema) : {};
    return this.server && this.revision >= "2025-06-18" ? { "mcp-protocol-version": this.revision } : {};
  }
}
