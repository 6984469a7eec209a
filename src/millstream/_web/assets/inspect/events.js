// Events: the types that the server declares, and subscriptions by stream or polling.

import { clock, count, element, lazyDetails, pre, pretty, write } from "../dom.js";
import { wait } from "../mcp/wire.js";
import { colored } from "../render/json.js";
import { schemaForm } from "../schema/form.js";
import { draft } from "./drafts.js";
import { badge, folded, show } from "./item.js";
import { connected, request, session } from "./session.js";

export const EVENTS = "io.modelcontextprotocol/events";
const KEPT = 200;
const POLL_MS = [200, 10_000]; // minimum, default

export const loadEvents = () => session.client.list("events/list", "events");

/** The newest events of a subscription. */
class Arrivals {
  total = 0;
  #list = element("ol");
  #says = element("p", "soft small", "Waiting for events…");
  node = element(
    "div",
    "stack tight",
    this.#says,
    element("div", { className: "arrivals", tabIndex: 0, role: "log", "aria-label": "Events" }, this.#list)
  );

  add({ eventId = "", timestamp, data }) {
    this.total += 1;
    const at = new Date(timestamp);
    const head = [
      element("time", { dateTime: timestamp ?? "" }, Number.isNaN(at.getTime()) ? "" : clock(at)),
      element("code", { className: "one-line", dir: "auto" }, JSON.stringify(data ?? null))
    ];
    const item = lazyDetails("", element("summary", "log-line", ...head), () => [
      element("p", "soft small", "Id ", element("code", {}, eventId)),
      pre("Data", ...colored(pretty(data ?? null)))
    ]);
    this.#list.prepend(element("li", {}, item));
    if (this.#list.childElementCount > KEPT) this.#list.lastChild.remove();
    write(this.#says, `${count(this.total)} ${this.total === 1 ? "event" : "events"}, the newest first`);
  }

  miss() {
    this.#list.prepend(
      element("li", "soft small", "Some events may be missing, because the server no longer has all of them.")
    );
  }
}

/** Receive events by a stream until the user stops it. */
function stream(params, arrivals, signal) {
  const notified = (method, { truncated, ...event }) => {
    if (method === "notifications/events/event") arrivals.add(event);
    else if (truncated) arrivals.miss();
  };
  return request("events/stream", params, { signal, notified });
}

async function poll(params, arrivals, signal) {
  let cursor;
  for (;;) {
    const page = await request("events/poll", cursor === undefined ? params : { ...params, cursor }, { signal });
    page.events.forEach((event) => arrivals.add(event));
    if (page.truncated) arrivals.miss();
    cursor = page.cursor;
    if (!page.hasMore) await wait(Math.max(page.nextPollMs ?? POLL_MS[1], POLL_MS[0]), signal);
  }
}

async function receive(params, streams, { place, progress, signal }) {
  const arrivals = new Arrivals();
  progress({ message: streams ? "Subscribed by a stream" : "Subscribed by polls" });
  place(arrivals.node);
  try {
    await (streams ? stream : poll)(params, arrivals, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
  return { arrivals };
}

export function eventCard(item, values) {
  const form = draft("events", item.name, item.inputSchema, () =>
    schemaForm(item.inputSchema ?? { type: "object" }, { id: "argument" })
  );
  const streams = !session.client.handshake && (item.delivery ?? []).includes("push");
  return show("events", item, values, {
    heading: item.name,
    about: item.description,
    badges: (item.delivery ?? []).map((each) => badge(each)),
    form,
    verb: "Subscribe",
    stops: "Stop",
    save: null,
    request: (given) => ({
      method: streams ? "events/stream" : "events/poll",
      params: { name: item.name, arguments: given }
    }),
    send: async (_, params, options) => {
      await connected();
      return receive(params, streams, options);
    },
    draw: ({ arrivals }) => [arrivals.node],
    raw: false,
    extra: [
      folded(
        "Schemas",
        [item.inputSchema ?? {}, "Schema of the arguments"],
        [item.payloadSchema ?? {}, "Schema of the data"]
      ),
      folded("Definition", [item, "Definition"])
    ]
  });
}
