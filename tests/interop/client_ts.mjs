// The 1.x line of the official TypeScript SDK against a server: client_ts.mjs PACKAGES TRANSPORT HUB EVERYTHING HEALTH.
//
// PACKAGES is the folder whose node_modules has the SDK. Prints one JSON report with the names of steps.py.
// HUB and EVERYTHING are URLs, or commands for stdio.

import { createRequire } from "node:module";
import { join } from "node:path";
import { ANSWERS, CAPABILITIES, heard, report } from "./steps.mjs";

const [packages, kind, hub, everything, health] = process.argv.slice(2);
const load = createRequire(join(packages, "package.json"));
const { Client } = load("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = load("@modelcontextprotocol/sdk/client/sse.js");
const { StdioClientTransport } = load("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = load("@modelcontextprotocol/sdk/client/streamableHttp.js");
const types = load("@modelcontextprotocol/sdk/types.js");

function transportTo(target, options = {}) {
  if (kind === "stdio") {
    const [command, ...args] = target.split(" ");
    return new StdioClientTransport({ command, args, stderr: "ignore" });
  }
  const Transport = kind === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
  return new Transport(new URL(target), options);
}

async function connect(target, options) {
  const client = new Client({ name: "ts", version: "1" }, { capabilities: CAPABILITIES });
  client.setRequestHandler(types.ElicitRequestSchema, ANSWERS["elicitation/create"]);
  client.setRequestHandler(types.CreateMessageRequestSchema, ANSWERS["sampling/createMessage"]);
  client.setRequestHandler(types.ListRootsRequestSchema, ANSWERS["roots/list"]);
  const transport = transportTo(target, options);
  await client.connect(transport);
  return { client, transport };
}

const call = (client, name, args = {}, options = undefined) =>
  client.callTool({ name, arguments: args }, undefined, options);

async function watch(client, uri, act) {
  await client.subscribeResource({ uri });
  const schema = types.ResourceUpdatedNotificationSchema;
  return heard((tell) => client.setNotificationHandler(schema, ({ params }) => tell(params.uri === uri)), act);
}

await report({ handshake: true, connect, call, watch }, kind, hub, everything, health);
