// The host side of MCP Apps 2026-01-26 (io.modelcontextprotocol/ui): JSON-RPC by `postMessage` with an untrusted frame.
// Its messages are limited in size and rate, and actions require the user's consent.

export const VERSION = "2026-01-26";
export const EXTENSION = "io.modelcontextprotocol/ui";
export const MIME = "text/html;profile=mcp-app";

const NOT_FOUND = -32601;
const INVALID = -32602;
const REFUSED = -32000;
const MAX_REQUEST = 1024 * 1024; // characters
const MAX_NOTIFICATION = 16 * 1024; // characters
const MAX_PENDING = 16; // requests of a frame
const MAX_RATE = 100; // messages of a frame per second

/** @param {number} code @param {string} message */
const error = (code, message) => Object.assign(new Error(message), { code });

/** Return the length of a value as JSON; infinity if it can't be encoded. @param {unknown} value */
function sizeOf(value) {
  try {
    return (JSON.stringify(value) ?? "").length;
  } catch {
    return Infinity;
  }
}

/** Whether apps may call a tool, which is the default. @param {Json} tool */
export const isVisibleToApps = (tool) => (tool._meta?.ui?.visibility ?? ["model", "app"]).includes("app");

/**
 * @typedef {object} Host the page's functions for an app
 * @property {() => Json} context returns the host context
 * @property {Json} capabilities
 * @property {(name: string) => Json | undefined} tool returns a tool of the app's server
 * @property {(tool: Json, given: Json) => Promise<Json>} call asks for consent if needed
 * @property {(uri: string) => Promise<Json>} read
 * @property {(url: string) => Promise<void>} open rejects if the user declines
 * @property {(contents: Json[]) => Promise<void>} save downloads files; rejects if the user declines
 * @property {(text: string, role: string) => Promise<void>} say
 * @property {(context: Json) => void} remember updates the model's context
 * @property {(size: {width?: number, height?: number}) => void} resize
 * @property {(level: string, data: unknown) => void} log
 * @property {(reason: string) => void} dropped a notification was dropped; at most once a second if there are too many
 * @property {() => void} ready the app has started
 */

export class Bridge {
  ready = false;
  #frame;
  #host;
  #pending = 0;
  #next = 1;
  #second = 0;
  #rate = 0; // messages in that second
  #waiting = new Map(); // id of a request to the app -> its resolve function

  /** @param {HTMLIFrameElement} frame @param {Host} host */
  constructor(frame, host) {
    this.#frame = frame;
    this.#host = host;
    this.listen = this.listen.bind(this);
    addEventListener("message", this.listen);
  }

  close() {
    removeEventListener("message", this.listen);
  }

  /** Send a notification to the app. @param {string} method @param {Json} params */
  notify(method, params) {
    this.#post({ jsonrpc: "2.0", method, params });
  }

  /**
   * Send a request to the app, and wait for its response, at most `ms`.
   *
   * @param {string} method
   * @param {Json} params
   * @param {number} ms
   */
  request(method, params, ms) {
    const id = `host-${this.#next++}`;
    this.#post({ jsonrpc: "2.0", id, method, params });
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      setTimeout(resolve, ms);
    }).finally(() => this.#waiting.delete(id));
  }

  // The frame's origin is opaque, so the target can't be restricted to it.
  /** @param {Json} message */
  #post(message) {
    this.#frame.contentWindow?.postMessage(message, "*");
  }

  /** @param {MessageEvent} event */
  async listen({ source, data }) {
    if (!source || source !== this.#frame.contentWindow || data?.jsonrpc !== "2.0") return;
    const { id, method, params } = data;
    if (method === undefined) return this.#waiting.get(id)?.(data);
    const fast = this.#isTooFast();
    if (id === undefined) {
      if (fast)
        return this.#rate === MAX_RATE + 1 && this.#host.dropped(`An app sends at most ${MAX_RATE} messages a second.`);
      if (sizeOf(params) > MAX_NOTIFICATION)
        return this.#host.dropped(`${String(method).slice(0, 80)} is larger than ${MAX_NOTIFICATION / 1024} KiB.`);
      return this.#onNotification(method, params ?? {});
    }
    if (typeof id !== "string" && typeof id !== "number") return;
    try {
      if (fast) throw error(REFUSED, `An app sends at most ${MAX_RATE} messages a second.`);
      if (this.#pending >= MAX_PENDING)
        throw error(REFUSED, `An app can have at most ${MAX_PENDING} pending requests.`);
      if (sizeOf(params) > MAX_REQUEST) throw error(INVALID, "This message is too large.");
      this.#pending += 1;
      const result = await this.#onRequest(method, params ?? {}).finally(() => (this.#pending -= 1));
      this.#post({ jsonrpc: "2.0", id, result: result ?? {} });
    } catch (/** @type {any} */ problem) {
      this.#post({ jsonrpc: "2.0", id, error: { code: problem.code ?? REFUSED, message: problem.message } });
    }
  }

  #isTooFast() {
    const second = Math.floor(performance.now() / 1_000);
    if (second !== this.#second) [this.#second, this.#rate] = [second, 0];
    this.#rate += 1;
    return this.#rate > MAX_RATE;
  }

  /** @param {string} method @param {Json} params */
  #onNotification(method, params) {
    if (method === "ui/notifications/initialized" && !this.ready) {
      this.ready = true;
      this.#host.ready();
    } else if (method === "ui/notifications/size-changed") this.#host.resize(params);
    else if (method === "notifications/message") this.#host.log(String(params.level ?? "info"), params.data);
  }

  /** @param {string} method @param {Json} params */
  async #onRequest(method, params) {
    const host = this.#host;
    if (method === "ui/initialize")
      return {
        protocolVersion: VERSION,
        hostInfo: { name: "millstream-inspect", version: "1" },
        hostCapabilities: host.capabilities,
        hostContext: host.context()
      };
    if (method === "ping") return {};
    if (method === "tools/call") {
      const tool = host.tool(params.name);
      if (!tool || !isVisibleToApps(tool)) throw error(INVALID, `Apps have no tool ${params.name}.`);
      return host.call(tool, params.arguments ?? {});
    }
    if (method === "resources/read") return host.read(String(params.uri));
    if (method === "ui/open-link") return host.open(String(params.url));
    if (method === "ui/download-file")
      return host.save([params.contents ?? []].flat()).catch((problem) => {
        host.log("warning", problem.message);
        return { isError: true };
      });
    if (method === "ui/message") {
      const text = [params.content]
        .flat()
        .map((each) => (each?.type === "text" ? String(each.text) : ""))
        .join("\n");
      return host.say(text, String(params.role ?? "user"));
    }
    if (method === "ui/update-model-context")
      return host.remember({ content: params.content, structuredContent: params.structuredContent });
    if (method === "ui/request-display-mode") return { mode: "inline" };
    throw error(NOT_FOUND, `This host doesn't support ${method}.`);
  }
}
