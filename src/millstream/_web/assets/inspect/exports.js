// Exports: a call as curl, Python, or TypeScript.

import { pretty } from "../dom.js";
import { NEWEST } from "../mcp/client.js";
import { META, requestHeaders } from "../mcp/transports.js";

/** @param {string} text */
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Format JSON as a Python literal. @param {any} value @returns {string} */
function python(value, indent = 0) {
  const pad = " ".repeat(indent + 4);
  const end = `\n${" ".repeat(indent)}`;
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value))
    return value.length ? `[\n${value.map((each) => pad + python(each, indent + 4)).join(",\n")},${end}]` : "[]";
  if (typeof value === "object") {
    const entries = Object.entries(value);
    return entries.length
      ? `{\n${entries.map(([key, each]) => `${pad}${JSON.stringify(key)}: ${python(each, indent + 4)}`).join(",\n")},${end}}`
      : "{}";
  }
  return JSON.stringify(value);
}

/**
 * Return a curl command. It uses the per-request era, which has no session.
 *
 * @param {string} url
 * @param {string} method
 * @param {Json} params
 * @param {Record<string, string>} headers added by the user
 * @param {Json} [schema] schema of a tool's arguments, some of which may be sent as headers
 */
export function curl(url, method, params, headers, schema) {
  const meta = {
    [`${META}protocolVersion`]: NEWEST,
    [`${META}clientInfo`]: { name: "curl", version: "8" },
    [`${META}clientCapabilities`]: {}
  };
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method, params: { ...params, _meta: meta } });
  const head = {
    "content-type": "application/json",
    accept: "application/json, text/event-stream",
    ...requestHeaders(NEWEST, { method, params }, schema),
    ...headers
  };
  return [
    `curl -s ${url}`,
    ...Object.entries(head).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`),
    `-d ${quoted(body)}`
  ].join(" \\\n  ");
}

/** @type {Record<string, (params: Json) => string[]>} */
const PYTHON = {
  "tools/call": ({ name, arguments: given }) => [
    `result = await client.call(${JSON.stringify(name)}, ${python(given ?? {}, 8)})`,
    "print(result.data)"
  ],
  "resources/read": ({ uri }) => [`for content in await client.read(${JSON.stringify(uri)}):`, "    print(content)"],
  "prompts/get": ({ name, arguments: given }) => [
    `print(await client.prompt(${JSON.stringify(name)}, ${python(given ?? {}, 8)}))`
  ]
};

/**
 * Return Python code that uses Millstream's client.
 *
 * @param {string} url
 * @param {string} method
 * @param {Json} params
 * @param {Record<string, string>} headers
 */
export function pythonCode(url, method, params, headers) {
  const lines = (
    PYTHON[method] ?? (() => [`print(await client.request(${JSON.stringify(method)}, ${python(params, 8)}))`])
  )(params);
  const options = Object.keys(headers).length ? `, headers=${python(headers, 4)}` : "";
  return [
    "import asyncio",
    "",
    "from millstream import Client",
    "",
    "",
    "async def main() -> None:",
    `    async with Client(${JSON.stringify(url)}${options}) as client:`,
    ...lines.map((line) => `        ${line}`),
    "",
    "",
    "asyncio.run(main())",
    ""
  ].join("\n");
}

/** @type {Record<string, (params: Json) => string>} */
const TYPESCRIPT = {
  "tools/call": (params) => `await client.callTool(${pretty(params)})`,
  "resources/read": (params) => `await client.readResource(${pretty(params)})`,
  "prompts/get": (params) => `await client.getPrompt(${pretty(params)})`,
  "server/discover": () => "await client.ping()" // the SDK doesn't expose this method
};

/**
 * Return TypeScript code that uses the official SDK.
 *
 * @param {string} url
 * @param {string} method
 * @param {Json} params
 * @param {Record<string, string>} headers
 */
export function typescript(url, method, params, headers) {
  const call = (TYPESCRIPT[method] ?? (() => `await client.request(${pretty({ method, params })})`))(params);
  const options = Object.keys(headers).length ? `, { requestInit: { headers: ${pretty(headers)} } }` : "";
  return [
    'import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";',
    "",
    'const client = new Client({ name: "example", version: "1.0.0" });',
    `await client.connect(new StreamableHTTPClientTransport(new URL(${JSON.stringify(url)})${options}));`,
    `console.dir(${call}, { depth: null });`,
    "await client.close();",
    ""
  ].join("\n");
}

/** Quote JSON for a shell, on one line if it's short. @param {Json} values */
function quotedJson(values) {
  const line = JSON.stringify(values);
  return (line.length > 48 ? pretty(values) : line).replaceAll("'", "'\\''");
}

/** @param {boolean} guarded */
const headers = (guarded) =>
  Object.entries({ "content-type": "application/json", ...(guarded && { authorization: "Bearer KEY" }) });
/** @param {boolean} guarded */
const inJson = (guarded) =>
  headers(guarded)
    .map(([name, value]) => `"${name}": "${value}"`)
    .join(", ");

/**
 * Language -> example code that calls an operation, with a key if callers sign in.
 *
 * @type {Record<string, (url: string, values: Json, guarded: boolean) => string>}
 */
export const LANGUAGES = {
  curl: (url, values, guarded) =>
    `curl ${url} \\\n${headers(guarded)
      .map(([name, value]) => `  -H '${name}: ${value}' \\\n`)
      .join("")}  -d '${quotedJson(values)}'\n`,
  Python: (url, values, guarded) =>
    `import json\nfrom urllib.request import Request, urlopen\n\narguments = ${python(values)}\nrequest = Request(\n    ${JSON.stringify(url)},\n    json.dumps(arguments).encode(),\n    {${inJson(guarded)}},\n)\nwith urlopen(request) as response:\n    print(json.load(response))\n`,
  TypeScript: (url, values, guarded) =>
    `const response = await fetch(${JSON.stringify(url)}, {\n  method: "POST",\n  headers: { ${inJson(guarded)} },\n  body: JSON.stringify(${pretty(values).replaceAll("\n", "\n  ")}),\n});\nif (!response.ok) throw new Error((await response.json()).detail);\nconsole.log(await response.json());\n`
};
