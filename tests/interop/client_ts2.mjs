// The 2.x line of the official TypeScript SDK: client_ts2.mjs PACKAGES TRANSPORT HUB EVERYTHING HEALTH MODE.
//
// As client_ts.mjs; MODE is `legacy`, `auto`, or a revision, which the server has to offer then.

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ANSWERS, CAPABILITIES, heard, report } from "./steps.mjs";

const [packages, kind, hub, everything, health, mode] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { Client, SSEClientTransport, StreamableHTTPClientTransport } = await load("@modelcontextprotocol/client");
const { StdioClientTransport } = await load("@modelcontextprotocol/client/stdio");

const handshake = mode === "legacy";
const versionNegotiation = { mode: handshake || mode === "auto" ? mode : { pin: mode } };

function transportTo(target, options = {}) {
  if (kind === "stdio") {
    const [command, ...args] = target.split(" ");
    return new StdioClientTransport({ command, args, stderr: "ignore" });
  }
  const Transport = kind === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
  return new Transport(new URL(target), options);
}

async function connect(target, options) {
  const client = new Client({ name: "ts", version: "2" }, { capabilities: CAPABILITIES, versionNegotiation });
  for (const [method, answer] of Object.entries(ANSWERS)) client.setRequestHandler(method, answer);
  const transport = transportTo(target, options);
  await client.connect(transport);
  return { client, transport };
}

const call = (client, name, args = {}, options = undefined) => client.callTool({ name, arguments: args }, options);

async function watch(client, uri, act) {
  const subscription = handshake ? undefined : await client.listen({ resourceSubscriptions: [uri] });
  if (handshake) await client.subscribeResource({ uri });
  const hear = (tell) =>
    client.setNotificationHandler("notifications/resources/updated", ({ params }) => tell(params.uri === uri));
  const found = await heard(hear, act);
  await subscription?.close();
  return found;
}

await report({ handshake, connect, call, watch }, kind, hub, everything, health);
