// An agent of the AI SDK: agent_ai_sdk.mjs GATEWAY MODEL KEY. Prints the answer of the run.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";

const [url, api, key] = process.argv.slice(2);
const model = createOpenAICompatible({ name: "model", baseURL: api, apiKey: "x" })("gpt-4o");
const question = "Begin.";
// region: ai-sdk
import { createMCPClient } from "@ai-sdk/mcp";
import { generateText, isStepCount } from "ai";

const headers = { Authorization: `Bearer ${key}` };
const client = await createMCPClient({ transport: { type: "http", url, headers } });
const tools = await client.tools();
const { text } = await generateText({ model, tools, prompt: question, stopWhen: isStepCount(20) });
await client.close();
// endregion
process.stdout.write(text);
