// A small MCP client for all revisions and transports. In the handshake era, the server asks questions by requests. In
// the per-request era (2026-07-28), each request identifies the client, and questions arrive as a result; the client
// answers by repeating the request.

import { checkServer, META, requestHeaders, RpcError, wait } from "./transports.js";

export const REVISIONS = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
export const NEWEST = REVISIONS[0];
/** The revision of HTTP+SSE. */
export const FIRST = REVISIONS[REVISIONS.length - 1];
/** Return whether a revision has a handshake and sessions. @param {string} revision */
export const hasHandshake = (revision) => revision <= "2025-11-25";

/** Return whether progress only shows that a silent call is alive. @param {Json} params */
export const isKeepAlive = (params) => Boolean(params._meta?.["millstream.server/keep-alive"]);

const CLIENT = { name: "millstream-inspect", version: "1" };
const MAX_ROUNDS = 100;
const MAX_PAGES = 1_000; // of a list
const CHECK_MS = 5_000;
const LISTS = { toolsListChanged: true, promptsListChanged: true, resourcesListChanged: true };

/** @typedef {import("./transports.js").Transport} Transport */
/** @typedef {import("./transports.js").Wire} Wire */

/** Return a key of what lists and forms depend on. @param {Json} server */
const serverKey = ({ capabilities, instructions, _meta }) =>
  JSON.stringify([capabilities, instructions, _meta?.[`${META}serverInfo`]]);

/**
 * @typedef {object} Events callbacks of a client
 * @property {(message: Json, how: Json) => void} sent for each outgoing message
 * @property {(message: Json, how: Json) => void} got for each incoming message
 * @property {(message: Json, error: any) => void} failed for a request without a response
 * @property {(method: string, params: Json, signal?: AbortSignal) => Promise<Json>} ask answers a question of the server
 * @property {(method: string, params: Json) => void} notified for each notification
 * @property {(error: any) => void} lost the connection is lost; this client is closed
 */

/**
 * @typedef {object} RequestOptions
 * @property {(params: Json) => void} [progress] receives progress
 * @property {(method: string, params: Json) => void} [notified] receives the request's other notifications
 * @property {AbortSignal} [signal] cancels
 * @property {Schema} [schema] of the arguments; it determines which of them are sent as headers
 */

export class Client {
  /** @type {Json | null} */
  server = null; // {serverInfo, capabilities, instructions, protocolVersion}
  logLevel = "";
  #make;
  #transport;
  #revision;
  #capabilities;
  #on;
  #next = 1;
  /** @type {Map<number, (message: Json, how: Json) => void>} by the id of the request */
  #pending = new Map();
  /** @type {Map<number, (params: Json) => void>} */
  #progress = new Map();
  /** @type {Map<number, (method: string, params: Json) => void>} */
  #notified = new Map();
  #closed = new AbortController();

  /**
   * @param {(on: Wire) => Transport} transport creates a transport
   * @param {string} revision one of REVISIONS
   * @param {Json} capabilities client capabilities: elicitation, sampling, roots
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
        this.#dispatch(message, how);
      }
    });
  }

  get handshake() {
    return hasHandshake(this.#revision);
  }

  get revision() {
    return this.server?.protocolVersion ?? this.#revision;
  }

  get session() {
    return this.#transport.session;
  }

  /** Connect in the way of the era, and start listening. */
  async open() {
    await this.#transport.open(this.#closed.signal);
    let server;
    if (this.handshake) {
      server = await this.request("initialize", {
        protocolVersion: this.#revision,
        capabilities: this.#clientCapabilities(),
        clientInfo: CLIENT
      });
      this.server = server; // the notification names its revision
      await this.notify("notifications/initialized");
    } else {
      const found = await this.request("server/discover", {});
      server = { ...found, serverInfo: found._meta?.[`${META}serverInfo`] ?? {}, protocolVersion: this.#revision };
    }
    // Servers without a version send "0", because the protocol requires one.
    if (server.serverInfo?.version === "0") server = { ...server, serverInfo: { ...server.serverInfo, version: "" } };
    this.server = server;
    this.#monitor(server);
    return server;
  }

  /** Cancel all requests, and end the session. */
  async close(reason = "Disconnected.") {
    this.#closed.abort(new Error(reason));
    await this.#transport.close(this.#headers({}));
  }

  /** Return the items of all pages of a list. @param {string} method @param {string} key */
  async list(method, key) {
    /** @type {Json[]} */
    const found = [];
    let cursor;
    for (let pages = 0; pages < MAX_PAGES; pages += 1) {
      const page = await this.request(method, cursor ? { cursor } : {});
      for (const item of page[key] ?? []) if (typeof (item?.name ?? item?.uri) === "string") found.push(item);
      cursor = page.nextCursor;
      if (!cursor) return found;
    }
    throw new Error(`${method} doesn't end: it has more than ${MAX_PAGES} pages.`);
  }

  /**
   * Send a request and wait for its result.
   *
   * @param {string} method
   * @param {Json} params
   * @param {RequestOptions} [options]
   * @returns {Promise<Json>}
   */
  async request(method, params, options = {}) {
    if (this.handshake) return this.#round(method, params, options);
    let extra = {};
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      const result = await this.#round(method, { ...params, ...extra }, options);
      if (result.resultType !== "input_required") return result;
      /** @type {Json} */
      const inputResponses = {};
      for (const [key, question] of Object.entries(result.inputRequests ?? {}))
        inputResponses[key] = await this.#on.ask(question.method, question.params ?? {}, options.signal);
      extra = {
        ...(result.requestState === undefined ? {} : { requestState: result.requestState }),
        ...(Object.keys(inputResponses).length ? { inputResponses } : {})
      };
    }
    throw new Error(`The server asked questions in more than ${MAX_ROUNDS} rounds.`);
  }

  /** Send a notification. @param {string} method @param {Json} [params] */
  async notify(method, params) {
    const message = { jsonrpc: "2.0", method, ...(params ? { params } : {}) };
    await this.#transport.send(message, this.#headers(message), this.#closed.signal);
  }

  /**
   * Subscribe to updates of a resource until the signal aborts. They arrive as notifications.
   *
   * @param {string} uri
   * @param {AbortSignal} signal
   */
  async watch(uri, signal) {
    if (!this.handshake) {
      await this.request("subscriptions/listen", { notifications: { resourceSubscriptions: [uri] } }, { signal });
      return;
    }
    await this.request("resources/subscribe", { uri });
    signal.addEventListener("abort", () => this.request("resources/unsubscribe", { uri }).catch(() => {}));
  }

  // One request

  /** @param {string} method @param {Json} params @param {RequestOptions} options */
  async #round(method, params, options) {
    const { progress, notified, signal, schema } = options;
    const id = this.#next++;
    const message = { jsonrpc: "2.0", id, method, params: this.#params(params, progress ? id : undefined) };
    if (progress) this.#progress.set(id, progress);
    if (notified) this.#notified.set(id, notified);
    const stop = AbortSignal.any([this.#closed.signal, ...(signal ? [signal] : [])]);
    const cancel = () => this.#cancel(id);
    signal?.addEventListener("abort", cancel, { once: true });
    try {
      return await this.#sendAndWait(message, this.#headers(message, schema), stop);
    } catch (error) {
      if (!(error instanceof RpcError)) this.#on.failed(message, error);
      if (error instanceof TypeError) this.#handleLoss(error);
      throw error;
    } finally {
      signal?.removeEventListener("abort", cancel);
      this.#progress.delete(id);
      this.#notified.delete(id);
      this.#pending.delete(id);
    }
  }

  /** @param {Json} message @param {Record<string, string>} headers @param {AbortSignal} signal */
  #sendAndWait(message, headers, signal) {
    return new Promise((resolve, reject) => {
      this.#pending.set(message.id, ({ error, result }, how) =>
        error ? reject(new RpcError(error, how)) : resolve(result)
      );
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      if (signal.aborted) return reject(signal.reason);
      const onEnd = () => this.#transport.replies && reject(new Error("The stream ended without a response."));
      this.#transport.send(message, headers, signal).then(onEnd, reject);
    });
  }

  /** Cancel a request. Over HTTP in the per-request era, closing the stream cancels it. @param {number} requestId */
  #cancel(requestId) {
    if (!this.handshake && this.#transport.replies) return;
    this.notify("notifications/cancelled", { requestId, reason: "Canceled by the user." }).catch(() => {});
  }

  /** @param {Json} message @param {Json} how */
  #dispatch(message, how) {
    if (message.method && message.id !== undefined) this.#reply(message);
    else if (message.method === "notifications/progress") {
      if (!isKeepAlive(message.params)) this.#progress.get(message.params.progressToken)?.(message.params);
      this.#on.notified(message.method, message.params);
    } else if (message.method) {
      this.#notified.get(message.params?._meta?.[`${META}subscriptionId`])?.(message.method, message.params);
      this.#on.notified(message.method, message.params ?? {});
    } else this.#pending.get(message.id)?.(message, how);
  }

  /** Answer a request from the server. @param {Json} request */
  async #reply({ id, method, params }) {
    let reply;
    try {
      reply = { result: method === "ping" ? {} : await this.#on.ask(method, params ?? {}, this.#closed.signal) };
    } catch (/** @type {any} */ error) {
      reply = { error: { code: error.code ?? -32601, message: error.message } };
    }
    const message = { jsonrpc: "2.0", id, ...reply };
    await this.#transport.send(message, this.#headers(message), this.#closed.signal).catch(() => {});
  }

  // Notifications of the server, and the state of the connection

  /**
   * Listen to the server, and detect when its stream ends or, without one, when it stops responding.
   *
   * @param {Json} server
   */
  async #monitor(server) {
    const signal = this.#closed.signal;
    try {
      await this.#listen(server, signal);
      const before = this.handshake ? "" : serverKey(server);
      for (;;) {
        await wait(CHECK_MS, signal);
        if (this.handshake) await checkServer(signal);
        else if ((await this.#discover(signal)) !== before) throw new Error("The server has changed.");
      }
    } catch (error) {
      this.#handleLoss(error);
    }
  }

  /** Return the current key of the server. This request isn't shown among the messages. @param {AbortSignal} signal */
  #discover(signal) {
    const message = { jsonrpc: "2.0", id: 0, method: "server/discover", params: this.#params({}) };
    return new Promise((resolve, reject) => {
      /** @param {Json} message */
      const got = ({ result, error }) => (error ? reject(new RpcError(error)) : resolve(serverKey(result)));
      const onEnd = () => reject(new Error("The server sent no response."));
      this.#make({ sent: () => {}, got })
        .send(message, this.#headers(message), signal)
        .then(onEnd, reject);
    });
  }

  /** @param {Json} server @param {AbortSignal} signal */
  async #listen(server, signal) {
    const lists = this.#changingLists(server);
    if (this.handshake || !this.#transport.replies) {
      if (!this.handshake && lists)
        this.request("subscriptions/listen", { notifications: lists }, { signal }).catch(() => {});
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

  /**
   * Return the lists that may change. A subscription without any would end immediately, like a lost connection.
   *
   * @param {Json} server
   */
  #changingLists(server) {
    const names = Object.keys(LISTS).filter(
      (name) => server.capabilities?.[name.replace("ListChanged", "")]?.listChanged
    );
    return names.length ? Object.fromEntries(names.map((name) => [name, true])) : null;
  }

  /** Close without ending the session, because the server doesn't respond or has dropped it. @param {any} error */
  #handleLoss(error) {
    if (!this.server || this.#closed.signal.aborted) return;
    this.#transport.session = "";
    this.close("The connection to the server was lost.");
    this.#on.lost(error);
  }

  #clientCapabilities() {
    const { elicitation, ...others } = this.#capabilities;
    if (!elicitation || this.#revision < "2025-06-18") return others;
    return { ...others, elicitation: this.#revision < "2025-11-25" ? {} : { form: {}, url: {} } };
  }

  /** @param {Json | undefined} params @param {number} [token] */
  #params(params, token) {
    const meta = { ...params?._meta };
    if (token !== undefined) meta.progressToken = token;
    if (!this.handshake) {
      meta[`${META}protocolVersion`] = this.#revision;
      meta[`${META}clientInfo`] = CLIENT;
      meta[`${META}clientCapabilities`] = this.#clientCapabilities();
      if (this.logLevel) meta[`${META}logLevel`] = this.logLevel;
    }
    return Object.keys(meta).length ? { ...params, _meta: meta } : params;
  }

  /** @param {Json} message @param {Schema} [schema] */
  #headers(message, schema) {
    if (!this.handshake) return message.method ? requestHeaders(this.#revision, message, schema) : {};
    return this.server && this.revision >= "2025-06-18" ? { "mcp-protocol-version": this.revision } : {};
  }
}
