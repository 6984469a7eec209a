// The official TypeScript SDK against a server: client_ts.mjs PACKAGES TRANSPORT HUB EVERYTHING HEALTH.
//
// PACKAGES is the folder whose node_modules has the SDK. Prints one JSON report with the names of steps.py.
// HUB and EVERYTHING are URLs, or commands for stdio.

import { createRequire } from "node:module";
import { join } from "node:path";

const [packages, kind, hub, everything, health] = process.argv.slice(2);
const load = createRequire(join(packages, "package.json"));
const { Client } = load("@modelcontextprotocol/sdk/client/index.js");
const { SSEClientTransport } = load("@modelcontextprotocol/sdk/client/sse.js");
const { StdioClientTransport } = load("@modelcontextprotocol/sdk/client/stdio.js");
const { StreamableHTTPClientTransport } = load("@modelcontextprotocol/sdk/client/streamableHttp.js");
const types = load("@modelcontextprotocol/sdk/types.js");

const ADDRESS = { street: "1 Mill Lane", city: "Bath", speed: "express" };
const WAIT = 5000;

function transportTo(target, options = {}) {
  if (kind === "stdio") {
    const [command, ...args] = target.split(" ");
    return new StdioClientTransport({ command, args, stderr: "ignore" });
  }
  const Transport = kind === "sse" ? SSEClientTransport : StreamableHTTPClientTransport;
  return new Transport(new URL(target), options);
}

async function connect(target, options) {
  const client = new Client(
    { name: "ts", version: "1" },
    { capabilities: { elicitation: { form: {} }, sampling: {}, roots: {} } },
  );
  client.setRequestHandler(types.ElicitRequestSchema, ({ params }) => ({
    action: "accept",
    content: "street" in params.requestedSchema.properties ? ADDRESS : { name: "Ada" },
  }));
  client.setRequestHandler(types.CreateMessageRequestSchema, () => ({
    role: "assistant",
    model: "toy",
    content: { type: "text", text: "In short: all is well." },
  }));
  client.setRequestHandler(types.ListRootsRequestSchema, () => ({ roots: [{ uri: "file:///work" }] }));
  const transport = transportTo(target, options);
  await client.connect(transport);
  return { client, transport };
}

const call = (client, name, args = {}, options = undefined) =>
  client.callTool({ name, arguments: args }, undefined, options);
const text = (result) => result.content[0].text;

// Take progress from the transport itself.
function listen(transport, take) {
  const deliver = transport.onmessage;
  transport.onmessage = (message, ...rest) => {
    if (message.method === "notifications/progress") take(message.params);
    else deliver(message, ...rest);
  };
  return () => {
    transport.onmessage = deliver;
  };
}

async function failure(promise) {
  try {
    return { isError: (await promise).isError ?? false };
  } catch (error) {
    return error.code;
  }
}

function within(promise) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("waited for too long")), WAIT);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function cancel(client) {
  const abort = new AbortController();
  const begun = Promise.withResolvers();
  const options = { signal: abort.signal, onprogress: begun.resolve };
  const running = call(client, "long_task", { steps: 1000, seconds: 60 }, options);
  running.catch(() => undefined);
  await within(begun.promise);
  abort.abort("enough");
  const idle = async () => {
    while (health && (await (await fetch(health)).json()).calls > 0) await new Promise((next) => setTimeout(next, 10));
  };
  await within(idle());
  return text(await call(client, "greet", { name: "again" }));
}

async function updates(client) {
  let heard = () => undefined;
  client.setNotificationHandler(types.ResourceUpdatedNotificationSchema, ({ params }) => heard(params.uri));
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const { order } = JSON.parse(text(await call(client, "order_parcel", { item: "salt" })));
    const uri = `orders://${Number(order) + 1}`;
    const update = new Promise((resolve) => {
      heard = (changed) => resolve(changed === uri);
      setTimeout(resolve, 1000, false).unref();
    });
    await client.subscribeResource({ uri });
    await call(client, "order_parcel", { item: "yeast" });
    if (await update) return true;
  }
  return false;
}

// Lose the connection in the middle of a call and read the rest on another one.
async function resume() {
  const first = await connect(hub);
  const tokens = [];
  const begun = Promise.withResolvers();
  const onresumptiontoken = (token) => tokens.push(token) === 3 && begun.resolve();
  const args = { steps: 5, seconds: 0.5 };
  call(first.client, "long_task", args, { onresumptiontoken, onprogress: () => undefined }).catch(() => undefined);
  await within(begun.promise);
  const sessionId = first.transport.sessionId;
  await first.client.close();
  const resumptionToken = tokens.at(-1);
  const second = await connect(hub, { sessionId });
  second.transport.setProtocolVersion(first.transport.protocolVersion);
  // The steps carry the token of the first client's request, which this client's dispatcher does not know.
  const progress = [];
  listen(second.transport, (step) => progress.push(step.progress));
  const result = await call(second.client, "long_task", args, { resumptionToken, onresumptiontoken });
  await second.client.close();
  return { text: text(result), progress };
}

async function walk() {
  const { client, transport } = await connect(hub);
  // Taken before the SDK dispatches it: a step that arrives in one piece with the response finds its handler gone.
  const progress = [];
  const undo = listen(transport, ({ progress: value, total, message }) => progress.push([value, total, message]));
  const onprogress = () => undefined;
  const added = await call(client, "add_numbers", { a: 2, b: 3, stream: true }, { onprogress });
  undo();
  const prompt = await client.getPrompt({ name: "translate", arguments: { text: "bonjour", language: "Dutch" } });
  const completed = await client.complete({
    ref: { type: "ref/prompt", name: "translate" },
    argument: { name: "language", value: "d" },
  });
  const report = {
    tools: (await client.listTools()).tools.map(({ name }) => name).sort(),
    resources: (await client.listResources()).resources.map(({ uri }) => uri),
    templates: (await client.listResourceTemplates()).resourceTemplates.map(({ uriTemplate }) => uriTemplate),
    prompts: (await client.listPrompts()).prompts.map(({ name }) => name),
    sum: text(added),
    progress,
    structured: (await call(client, "get_server_info")).structuredContent,
    order: text(await call(client, "order_parcel", { item: "flour" })),
    summary: text(await call(client, "summarize", { text: "A long story." })),
    about: (await client.readResource({ uri: "hub://about" })).contents[0].text,
    clock: (await client.readResource({ uri: "time://Europe/Berlin" })).contents[0].uri,
    prompt: prompt.messages[0].content.text,
    completion: completed.completion.values,
    wrong_arguments: await failure(call(client, "add_numbers", { a: "two", b: 3 })),
    unknown_tool: await failure(call(client, "no_such_tool")),
    unknown_resource: await failure(client.readResource({ uri: "hub://nothing" })),
    cancel: await cancel(client),
    server: client.getServerVersion().name,
    updates: await updates(client),
  };
  report.revision = report.structured.revision;
  await client.ping();
  await client.close();
  return report;
}

async function walkEverything() {
  const { client } = await connect(everything);
  const mixed = await call(client, "test_multiple_content_types");
  const report = {
    everything: {
      roots: text(await call(client, "test_input_required_result_list_roots")),
      rounds: text(await call(client, "test_input_required_result_multiple_inputs")),
      content: mixed.content.map(({ type }) => type),
      audio: (await call(client, "test_audio_content")).content[0].mimeType,
      tool_error: (await call(client, "test_error_handling")).isError,
      binary: Object.keys((await client.readResource({ uri: "test://static-binary" })).contents[0]).sort(),
      image_prompt: (await client.getPrompt({ name: "test_prompt_with_image" })).messages[0].content.type,
    },
    reconnected: text(await call(client, "test_reconnection")),
  };
  await client.close();
  return report;
}

const report = { ...(await walk()), ...(await walkEverything()) };
if (kind === "http") report.resumed = await resume();
process.stdout.write(JSON.stringify(report));
