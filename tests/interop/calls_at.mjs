// The official TypeScript SDK calls tools when told: calls_at.mjs PACKAGES LINE URL. LINE is 1 or 2.
//
// Each line on stdin names a tool. Prints a line for each: the text of the result, or the error. Ends with stdin.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [packages, line, url] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const one = line === "1";
const sdk = await load(one ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const http = one ? await load("@modelcontextprotocol/sdk/client/streamableHttp.js") : sdk;

const client = new sdk.Client({ name: "ts", version: line }, { versionNegotiation: { mode: "legacy" } });
await client.connect(new http.StreamableHTTPClientTransport(new URL(url)));
for await (const name of createInterface({ input: process.stdin })) {
  const said = await client.callTool({ name, arguments: {} }).then(({ content }) => content[0].text, String);
  console.log(JSON.stringify(said));
}
await client.close();
process.exit(0);
