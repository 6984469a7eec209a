// The official TypeScript SDK calls a tool at one address of MCP with a key: key_at.mjs PACKAGES LINE URL KEY. LINE is 1
// or 2. Over HTTP+SSE if the path is that of the stream. Prints the names of the tools, and the tool's result.

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, line, url, key] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const one = line === "1";
const client = await load(one ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const http = one ? await load("@modelcontextprotocol/sdk/client/streamableHttp.js") : client;
const sse = one ? await load("@modelcontextprotocol/sdk/client/sse.js") : client;
const Transport = url.endsWith("/sse") ? sse.SSEClientTransport : http.StreamableHTTPClientTransport;

const made = new client.Client({ name: "ts", version: line });
await made.connect(new Transport(new URL(url), { requestInit: { headers: { authorization: `Bearer ${key}` } } }));
const { tools } = await made.listTools();
const said = (await made.callTool({ name: "who", arguments: {} })).content[0].text;
await made.close();
console.log(JSON.stringify({ tools: tools.map((each) => each.name), said }));
process.exit(0);
