// What transports and the client share: errors, headers, waiting.

export const META = "io.modelcontextprotocol/";
const NAMED = { "tools/call": "name", "prompts/get": "name", "resources/read": "uri", "tasks/get": "taskId", "tasks/update": "taskId", "tasks/cancel": "taskId" };

/** An error that the server answered with. */
export class RpcError extends Error {
  constructor({ code, message, data }, { status = 200, headers = {} } = {}) {
    super(message);
    this.name = "RpcError";
    this.code = code;
    this.data = data;
    this.status = status; // of the reply of HTTP that it came with
    this.challenge = headers["www-authenticate"] ?? "";
  }
}

/** A reply of HTTP that is no message of MCP: a refusal of the server or of what stands before it. */
export class HttpError extends Error {
  constructor(status, message, challenge = "") {
    super(message);
    this.name = "HttpError";
    this.status = status;
    this.challenge = challenge; // WWW-Authenticate
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

/** The headers that a request of the per-request era (2026-07-28) carries beside its body. */
export function mirrored(revision, { method, params }, schema) {
  const headers = { "mcp-protocol-version": revision, "mcp-method": method };
  if (NAMED[method] && params?.[NAMED[method]] !== undefined) headers["mcp-name"] = headerValue(params[NAMED[method]]);
  return { ...headers, ...(method === "tools/call" ? argumentHeaders(schema, params?.arguments) : {}) };
}

/** Check whether the server of this page is there. Rejects if it can't be reached. */
export const knock = (signal) => fetch("livez", { cache: "no-store", signal });

export const wait = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

/** The words of a refusal, or its status where it has none. */
export async function refused(response) {
  const text = await response.text().catch(() => "");
  let words = "";
  try {
    const body = JSON.parse(text);
    words = body.error?.message ?? body.detail ?? body.error_description ?? "";
  } catch {
    words = text.length < 400 && !/^\s*</.test(text) ? text.trim() : "";
  }
  words ||= `The server answered ${response.status} ${response.statusText}`.trim() + ".";
  return new HttpError(response.status, words, response.headers.get("www-authenticate") ?? "");
}

/** Headers of a reply as an object. */
export const shown = (headers) => Object.fromEntries(headers.entries());
