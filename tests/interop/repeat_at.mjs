// The official TypeScript SDK calls a tool several times at once: repeat_at.mjs PACKAGES LINE URL KEY MODE [ANSWER].
// LINE is 1 or 2. Each line on stdin is JSON with the tool, its arguments, `_meta`, and the number of calls. Prints the
// texts of the questions and results. MODE is how line 2 negotiates. ANSWER is what the person at the client answers.

import { createRequire } from "node:module";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [packages, line, url, key, mode, said] = process.argv.slice(2);
const require = createRequire(join(packages, "package.json"));
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const one = line === "1";
const sdk = await load(one ? "@modelcontextprotocol/sdk/client/index.js" : "@modelcontextprotocol/client");
const http = one ? await load("@modelcontextprotocol/sdk/client/streamableHttp.js") : sdk;

const pinned = mode === "2026-07-28" ? { pin: mode } : mode;
const capabilities = said ? { elicitation: { form: {} } } : {};
const client = new sdk.Client({ name: "ts", version: line }, { capabilities, versionNegotiation: { mode: pinned } });
const asked = [];
if (said) {
  const types = one ? await load("@modelcontextprotocol/sdk/types.js") : {};
  client.setRequestHandler(one ? types.ElicitRequestSchema : "elicitation/create", async (request) => {
    asked.push(request.params.message);
    return { action: "accept", content: { answer: said } };
  });
}
const requestInit = { headers: { authorization: `Bearer ${key}` } };
await client.connect(new http.StreamableHTTPClientTransport(new URL(url), { requestInit }));
for await (const text of createInterface({ input: process.stdin })) {
  const [name, given, _meta, times] = JSON.parse(text);
  const calls = Array.from({ length: times }, () => client.callTool({ name, arguments: given, _meta }));
  const results = await Promise.all(calls);
  const texts = results.map(({ content }) => content.map((block) => block.text).join("\n"));
  console.log(JSON.stringify([...asked.splice(0), ...texts]));
}
await client.close();
process.exit(0);
