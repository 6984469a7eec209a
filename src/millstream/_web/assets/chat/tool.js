// The server's own tool that publishes a message, `send_sse_message` by convention: what people say can go through it, as
// what an MCP client says does.

const NAME = "send_sse_message";
const HEAD = { method: "POST", headers: { "content-type": "application/json" } };

let tool = null;

const properties = () => tool?.inputSchema?.properties ?? {};

export const toolName = () => tool?.name ?? "";

/** Ask the server whether it has the tool. */
export async function findTool() {
  const response = await fetch("mcp/tools/list", { ...HEAD, body: "{}" });
  if (!response.ok) return;
  const found = (await response.json()).result?.tools?.find(({ name }) => name === NAME);
  tool = found?.inputSchema?.properties?.message ? found : null;
}

/** Whether the tool publishes to this channel: one that takes no channel knows only the first. */
export const mayTake = (channel, first) => Boolean(tool) && (channel === first || "channel" in properties());

/** Call it with what it takes. Throws in the words of the server. */
export async function callTool(given) {
  const known = Object.fromEntries(Object.entries(given).filter(([name]) => name in properties()));
  const response = await fetch("mcp/tools/call", { ...HEAD, body: JSON.stringify({ params: { name: NAME, arguments: known } }) });
  const { result, error, detail } = await response.json();
  if (error || !result) throw new Error(error?.message ?? detail ?? "The server refused the call.");
  if (result.isError) throw new Error(result.content?.map(({ text }) => text ?? "").join(" ") || "The tool failed.");
}
