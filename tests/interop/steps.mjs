// What a client of the official TypeScript SDK does with our examples, the same for both of its lines; see steps.py.
//
// A line is {handshake, connect(target, options), call(client, name, args, options), watch(client, uri, act)}; `watch`
// runs `act` and tells whether an update of the resource arrived.

const ADDRESS = { street: "1 Mill Lane", city: "Bath", speed: "express" };
const WAIT = 1000 * process.env.WAIT;
const HEARD = 1000; // a stream for updates may open late: then the next attempt hears

export const CAPABILITIES = { elicitation: { form: {} }, sampling: {}, roots: {} };

// Answers to what a server asks, by method.
export const ANSWERS = {
  "elicitation/create": ({ params }) => ({
    action: "accept",
    content: "street" in params.requestedSchema.properties ? ADDRESS : { name: "Ada" },
  }),
  "sampling/createMessage": () => ({
    role: "assistant",
    model: "toy",
    content: { type: "text", text: "In short: all is well." },
  }),
  "roots/list": () => ({ roots: [{ uri: "file:///work" }] }),
};

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

async function cancel(line, client, health) {
  const abort = new AbortController();
  const begun = Promise.withResolvers();
  const options = { signal: abort.signal, onprogress: begun.resolve };
  const running = line.call(client, "long_task", { steps: 1000, seconds: 60 }, options);
  running.catch(() => undefined);
  await within(begun.promise);
  abort.abort("enough");
  const idle = async () => {
    while (health && (await (await fetch(health)).json()).calls > 0) await new Promise((next) => setTimeout(next, 10));
  };
  await within(idle());
  return text(await line.call(client, "greet", { name: "again" }));
}

async function updates(line, client) {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const { order } = JSON.parse(text(await line.call(client, "order_parcel", { item: "salt" })));
    const act = () => line.call(client, "order_parcel", { item: "yeast" });
    if (await line.watch(client, `orders://${Number(order) + 1}`, act)) return true;
  }
  return false;
}

// Lose the connection in the middle of a call and read the rest on another one.
async function resume(line, hub) {
  const first = await line.connect(hub);
  const tokens = [];
  const begun = Promise.withResolvers();
  const onresumptiontoken = (token) => tokens.push(token) === 3 && begun.resolve();
  const args = { steps: 5, seconds: 0.5 };
  line.call(first.client, "long_task", args, { onresumptiontoken, onprogress: () => undefined }).catch(() => undefined);
  await within(begun.promise);
  const sessionId = first.transport.sessionId;
  await first.client.close();
  const resumptionToken = tokens.at(-1);
  const second = await line.connect(hub, { sessionId });
  second.transport.setProtocolVersion(first.transport.protocolVersion);
  // The steps carry the token of the first client's request, which this client's dispatcher does not know.
  const progress = [];
  listen(second.transport, (step) => progress.push(step.progress));
  const result = await line.call(second.client, "long_task", args, { resumptionToken, onresumptiontoken });
  await second.client.close();
  return { text: text(result), progress };
}

// Run `act` and wait for what `hear` is given a callback for.
export async function heard(hear, act) {
  const update = new Promise((resolve) => {
    hear(resolve);
    setTimeout(resolve, HEARD, false).unref();
  });
  await act();
  return update;
}

async function walk(line, hub, health) {
  const { client, transport } = await line.connect(hub);
  // Taken before the SDK dispatches it: a step that arrives in one piece with the response finds its handler gone.
  const progress = [];
  const undo = listen(transport, ({ progress: value, total, message }) => progress.push([value, total, message]));
  const onprogress = () => undefined;
  const added = await line.call(client, "add_numbers", { a: 2, b: 3, stream: true }, { onprogress });
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
    structured: (await line.call(client, "get_server_info")).structuredContent,
    order: text(await line.call(client, "order_parcel", { item: "flour" })),
    summary: text(await line.call(client, "summarize", { text: "A long story." })),
    about: (await client.readResource({ uri: "hub://about" })).contents[0].text,
    clock: (await client.readResource({ uri: "time://Europe/Berlin" })).contents[0].uri,
    prompt: prompt.messages[0].content.text,
    completion: completed.completion.values,
    wrong_arguments: await failure(line.call(client, "add_numbers", { a: "two", b: 3 })),
    unknown_tool: await failure(line.call(client, "no_such_tool")),
    unknown_resource: await failure(client.readResource({ uri: "hub://nothing" })),
    cancel: await cancel(line, client, health),
    server: client.getServerVersion()?.name ?? "",
    updates: await updates(line, client),
  };
  report.revision = report.structured.revision;
  if (line.handshake) await client.ping();
  await client.close();
  return report;
}

async function walkEverything(line, everything) {
  const { client } = await line.connect(everything);
  const mixed = await line.call(client, "test_multiple_content_types");
  const report = {
    everything: {
      roots: text(await line.call(client, "test_input_required_result_list_roots")),
      rounds: text(await line.call(client, "test_input_required_result_multiple_inputs")),
      content: mixed.content.map(({ type }) => type),
      audio: (await line.call(client, "test_audio_content")).content[0].mimeType,
      tool_error: (await line.call(client, "test_error_handling")).isError,
      binary: Object.keys((await client.readResource({ uri: "test://static-binary" })).contents[0]).sort(),
      image_prompt: (await client.getPrompt({ name: "test_prompt_with_image" })).messages[0].content.type,
    },
  };
  if (line.handshake) report.reconnected = text(await line.call(client, "test_reconnection"));
  await client.close();
  return report;
}

// Everything, as the one JSON that a client's program prints.
export async function report(line, kind, hub, everything, health) {
  const found = { ...(await walk(line, hub, health)), ...(await walkEverything(line, everything)) };
  if (kind === "http" && line.handshake) found.resumed = await resume(line, hub);
  process.stdout.write(JSON.stringify(found));
}
