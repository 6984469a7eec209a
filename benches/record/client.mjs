// The official client of TypeScript, for benches/record; its package is that of tests/interop.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(new URL("../../tests/interop/package.json", import.meta.url));
const { Client, StreamableHTTPClientTransport } = await import(
  pathToFileURL(require.resolve("@modelcontextprotocol/client")).href
);
const client = new Client({ name: "bench", version: "1" });
await client.connect(new StreamableHTTPClientTransport(new URL(process.argv[2])));
await client.listTools();
for (let number = 0; number < 2; number++) {
  console.log(JSON.stringify(await client.callTool({ name: "add", arguments: { a: 1234567, b: 1 } })));
}
await client.close();
