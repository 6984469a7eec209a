// Publishing with the server's tool, `send_sse_message` by convention, like an MCP client does.

import { post } from "../dom.js";

const NAME = "send_sse_message";

/** @type {Json | null} */
let tool = null;

const properties = () => tool?.inputSchema?.properties ?? {};

export const toolName = () => tool?.name ?? "";

/** Return the server's tools; null if the caller may not list them. @returns {Promise<Json[] | null>} */
export async function listTools() {
  const response = await post("mcp/tools/list", {});
  return response.ok ? ((await response.json()).result?.tools ?? []) : null;
}

/** Find the tool in the server's list. */
export async function findTool() {
  const tools = await listTools();
  if (!tools) return;
  const found = tools.find(({ name }) => name === NAME);
  tool = found?.inputSchema?.properties?.message ? found : null;
}

/**
 * Whether the tool can publish to a channel. Without a channel argument, it publishes to the first.
 *
 * @param {string} channel
 * @param {string} first
 */
export const mayTake = (channel, first) => Boolean(tool) && (channel === first || "channel" in properties());

/** Call the tool with the arguments that it accepts. Throws the server's error. @param {Json} given */
export async function callTool(given) {
  const known = Object.fromEntries(Object.entries(given).filter(([name]) => name in properties()));
  const response = await post("mcp/tools/call", { params: { name: NAME, arguments: known } });
  const { result, error, detail } = await response.json();
  if (error || !result) throw new Error(error?.message ?? detail ?? "The server refused the call.");
  if (result.isError)
    throw new Error(result.content?.map((/** @type {Json} */ { text }) => text ?? "").join(" ") || "The tool failed.");
}
