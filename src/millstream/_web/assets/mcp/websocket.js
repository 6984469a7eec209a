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
