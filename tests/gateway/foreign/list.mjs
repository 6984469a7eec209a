// Lists everything with the official TypeScript SDK, and calls each tool: list.mjs PACKAGES LINE COMMAND…
//
// LINE is 1 or 2, and PACKAGES the folder whose node_modules has it. Prints one JSON report.

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

const attempt = (work) => work.catch((error) => ({ failed: String(error.message) }));
const client = new Client({ name: "ts", version: "1" });
await client.connect(new StdioClientTransport({ command, args, stderr: "ignore" }));
const report = {
  tools: await attempt(client.listTools()),
  resources: await attempt(client.listResources()),
  resourceTemplates: await attempt(client.listResourceTemplates()),
  prompts: await attempt(client.listPrompts()),
  failed: {},
};
for (const { name } of report.tools.tools ?? []) {
  const { failed } = await attempt(client.callTool({ name, arguments: {} }));
  if (failed) report.failed[name] = failed;
}
console.log(JSON.stringify(report));
await client.close();
