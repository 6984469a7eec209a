// Lists the tools of a server with the official TypeScript SDK, page by page: tools.mjs PACKAGES LINE COMMAND…
//
// LINE is 1 or 2, and PACKAGES the folder whose node_modules has it. Prints the names as JSON. The client compiles each
// output schema, and refuses a page with one that it can't read.

import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [packages, line, command, ...args] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const [base, stdio] =
  line === "1"
    ? ["@modelcontextprotocol/sdk/client/index.js", "@modelcontextprotocol/sdk/client/stdio.js"]
    : ["@modelcontextprotocol/client", "@modelcontextprotocol/client/stdio"];
const { Client } = await load(base);
const { StdioClientTransport } = await load(stdio);

const client = new Client({ name: "ts", version: "1" });
await client.connect(new StdioClientTransport({ command, args, stderr: "ignore" }));
const names = [];
let cursor;
do {
  const page = await client.listTools(cursor ? { cursor } : undefined);
  names.push(...page.tools.map((tool) => tool.name));
  cursor = page.nextCursor;
} while (cursor);
console.log(JSON.stringify(names));
await client.close();
