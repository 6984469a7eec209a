// A server of the TypeScript SDK with one transport for the process, so it allows one session. It counts the calls of
// `count`. Usage: node one_session.mjs FOLDER_WITH_THE_SDK PORT
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";

const [folder, port] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const { McpServer } = require("@modelcontextprotocol/sdk/server/mcp.js");
const { StreamableHTTPServerTransport } = require("@modelcontextprotocol/sdk/server/streamableHttp.js");

let calls = 0;
const server = new McpServer({ name: "counter", version: "1.0.0" });
server.registerTool("count", { description: "Count this call." }, async () => ({
  content: [{ type: "text", text: String(++calls) }],
}));
const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: () => randomUUID() });
await server.connect(transport);
createServer((request, response) => transport.handleRequest(request, response)).listen(Number(port), "127.0.0.1");
