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

/** A JSON-RPC error of the server. */
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
