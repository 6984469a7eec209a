// A program without an SDK, for benches/record: plain.mjs URL.
const meta = {
  "io.modelcontextprotocol/protocolVersion": "2026-07-28",
  "io.modelcontextprotocol/clientInfo": { name: "bench", version: "1" },
  "io.modelcontextprotocol/clientCapabilities": {},
};
const headers = {
  Accept: "application/json, text/event-stream",
  "Content-Type": "application/json",
  "MCP-Protocol-Version": "2026-07-28",
  "Mcp-Method": "tools/call",
  "Mcp-Name": "add",
};
const params = { name: "add", arguments: { a: 1234567, b: 1 }, _meta: meta };
console.log(`source: undici ${process.versions.undici} on Node ${process.versions.node}`);
for (let id = 0; id < 2; id++) {
  const body = JSON.stringify({ jsonrpc: "2.0", id, method: "tools/call", params });
  console.log(await (await fetch(process.argv[2], { method: "POST", headers, body })).text());
}
