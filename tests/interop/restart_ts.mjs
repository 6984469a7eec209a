// The official TypeScript SDK while its server restarts, like restart_one.py: restart_ts.mjs PACKAGES URL.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";

const [packages, url] = process.argv.slice(2);
const load = createRequire(join(packages, "package.json"));
const { Client } = load("@modelcontextprotocol/sdk/client/index.js");
const { StreamableHTTPClientTransport } = load("@modelcontextprotocol/sdk/client/streamableHttp.js");

const uri = "note://counter";
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
let heard = [];
let wake = () => {};
const client = new Client({ name: "ts", version: "1" });
client.fallbackNotificationHandler = async ({ method }) => {
  heard.push(method);
  wake();
};
const call = (name) => client.callTool({ name, arguments: {} });

async function until(method) {
  while (!heard.includes(method)) await new Promise((resolve) => (wake = resolve));
}

await client.connect(new StreamableHTTPClientTransport(new URL(url)));
await client.subscribeResource({ uri });
while (!heard.includes("notifications/resources/updated")) {
  await call("bump"); // until the stream is open
  await new Promise((resolve) => setTimeout(resolve, 50));
}
console.log("ready");
await lines.next();
heard = [];
await call("bump");
await until("notifications/resources/list_changed"); // the stream is open again
heard = [];
await client.subscribeResource({ uri });
await call("bump");
await until("notifications/resources/updated");
await call("grow");
await until("notifications/tools/list_changed");
console.log(JSON.stringify({ heard: heard.sort(), tools: (await client.listTools()).tools.map(({ name }) => name) }));
await client.close();
process.exit(0);
