// The official TypeScript client, for benches/record: client.mjs URL [REVISION]. Its package is that of tests/interop.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, pin] = process.argv.slice(2);
const folder = new URL("../../tests/interop/", import.meta.url);
const require = createRequire(new URL("package.json", folder));
const { Client, StreamableHTTPClientTransport } = await import(
  pathToFileURL(require.resolve("@modelcontextprotocol/client")).href
);
const { version } = JSON.parse(readFileSync(new URL("node_modules/@modelcontextprotocol/client/package.json", folder)));
console.log(`source: @modelcontextprotocol/client ${version} on Node ${process.versions.node}`);
const client = new Client({ name: "bench", version: "1" }, pin ? { versionNegotiation: { mode: { pin } } } : {});
await client.connect(new StreamableHTTPClientTransport(new URL(url)));
await client.listTools();
if (!pin) await client.ping();
for (let number = 0; number < 2; number++) {
  console.log(JSON.stringify(await client.callTool({ name: "add", arguments: { a: 1234567, b: 1 } })));
}
await client.close();
