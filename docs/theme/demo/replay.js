// Answers the requests of the inspector with a recorded session, in place of a server. A classic script in the head, so
// that it's there before the page's modules.

(() => {
  const PAUSE_MS = 350; // between the messages of a stream, so that one sees them arrive
  const recorded = fetch("session.json").then((response) => response.json());
  const own = globalThis.fetch;

  /** @param {number} ms */
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  /** @type {(value: any) => any} */
  const sorted = (value) =>
    value && typeof value === "object" && !Array.isArray(value)
      ? Object.fromEntries(
          Object.keys(value)
            .sort()
            .map((key) => [key, sorted(value[key])])
        )
      : typeof value === "string"
        ? value.toLowerCase()
        : value;
  /** @param {Json} params @param {string} [ignored] */
  const text = (params, ignored) =>
    JSON.stringify(sorted(ignored ? { ...params, arguments: { ...params.arguments, [ignored]: "" } } : params));
  /** @param {unknown} value */
  const json = (value, status = 200) =>
    new Response(JSON.stringify(value), { status, headers: { "content-type": "application/json" } });

  /** The recorded reply to a request; undefined if there's none. @param {Json[]} session @param {Json} request */
  function find(session, request) {
    const { method } = request;
    const { _meta, requestState, inputResponses, cursor, ...asked } = request.params ?? {};
    const answer = Object.values(inputResponses ?? {})[0]?.action;
    const same = session.filter((each) => each.method === method && each.answer === answer);
    return method === "subscriptions/listen"
      ? same[0]
      : same.find(({ params, ignored }) => text(params, ignored) === text(asked, ignored));
  }

  /** @param {Json} request */
  function refuse({ id, method }) {
    const message =
      "This page replays a recording, which has no answer to that. Run `millstream dev bookshop.py` to get one.";
    if (method !== "tools/call") return json({ jsonrpc: "2.0", id, error: { code: -32601, message } }, 404);
    const content = [{ type: "text", text: message }];
    return json({ jsonrpc: "2.0", id, result: { resultType: "complete", content, isError: true } });
  }

  /** A recorded message, with the ids of this request. @param {Json} message @param {Json} request */
  function fill(message, { id, params }) {
    const made = structuredClone(message);
    if ("id" in made) made.id = id;
    if (made.params?.progressToken !== undefined) made.params.progressToken = params._meta?.progressToken;
    const meta = made.params?._meta;
    if (meta) for (const name of Object.keys(meta)) if (name.endsWith("subscriptionId")) meta[name] = id;
    return made;
  }

  /** @param {Json} request @param {AbortSignal | null} [signal] */
  async function reply(request, signal) {
    const entry = find(await recorded, request);
    if (!entry) return refuse(request);
    const messages = entry.messages.map((/** @type {Json} */ message) => fill(message, request));
    const { status, headers } = entry;
    if (!headers["content-type"].startsWith("text/event-stream"))
      return new Response(JSON.stringify(messages[0]), { status, headers });
    const body = new ReadableStream({
      async start(controller) {
        /** @param {Json} message */
        const write = (message) => controller.enqueue(new TextEncoder().encode(`data: ${JSON.stringify(message)}\n\n`));
        const [first, ...rest] = messages;
        write(first);
        for (const message of rest) {
          await wait(PAUSE_MS);
          if (signal?.aborted) return;
          write(message);
        }
        if (request.method !== "subscriptions/listen") controller.close();
        else signal?.addEventListener("abort", () => controller.error(signal.reason));
      }
    });
    return new Response(body, { status, headers });
  }

  globalThis.fetch = async (input, init = {}) => {
    const { pathname } = new URL(input instanceof Request ? input.url : input, document.baseURI);
    if (pathname.endsWith("/inspect/servers")) return json({ servers: [], development: false, tags: {} });
    if (pathname.endsWith("/dashboard/events")) return new Response(null, { status: 404 });
    if (pathname.endsWith("/livez")) return new Response("ok\n");
    if (!pathname.endsWith("/mcp")) return own(input, init);
    const request = JSON.parse(String(init.body ?? "{}"));
    return request.id === undefined ? new Response(null, { status: 202 }) : reply(request, init.signal);
  };
})();
