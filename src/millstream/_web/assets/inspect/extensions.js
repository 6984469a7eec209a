// Kinds of items that extensions add.

import { clock, count, element, facts, labeled, lazyDetails, pre, pretty, write } from "../dom.js";
import { draft } from "./history.js";
import { badge, folded, show } from "./item.js";
import { connected, request, session } from "./session.js";
import { wait } from "../mcp/transports.js";
import { contents } from "../render/content.js";
import { colored } from "../render/json.js";
import { schemaForm } from "../schema/form.js";

/** @typedef {import("./bench.js").SendOptions} SendOptions */

// Skills: folders of instructions for models. Each file can be read, and is verified against the manifest.

export const SKILLS = "io.modelcontextprotocol/skills";

/** Load all skills. Their URIs are unique, their names aren't. */
export async function loadSkills() {
  const found = (await session.client?.list("skills/list", "skills")) ?? [];
  return found.map((skill) => ({
    ...skill,
    name: skill.uri,
    title: String(skill.frontmatter?.name ?? skill.uri),
    description: String(skill.frontmatter?.description ?? "")
  }));
}

/** @param {Json} file */
const bytesOf = ({ text, blob }) =>
  blob === undefined ? new TextEncoder().encode(text ?? "") : Uint8Array.from(atob(blob), (each) => each.charCodeAt(0));

/**
 * Return a badge for whether a file matches the manifest; none without a manifest or the Web Crypto API.
 *
 * @param {Json | undefined} entry
 * @param {Json} result
 */
async function verdict(entry, result) {
  const file = (result.contents ?? [])[0];
  if (!entry || !file || !globalThis.crypto?.subtle) return [];
  const bytes = bytesOf(file);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = [...digest].map((each) => each.toString(16).padStart(2, "0")).join("");
  const same = entry.digest === `sha256:${hex}` && entry.size === bytes.length;
  return [element("p", {}, same ? badge("as in the manifest", "good") : badge("differs from the manifest", "bad"))];
}

/** @param {Json} skill @param {Json | null} values */
export function skillCard(skill, values) {
  const files = Array.isArray(skill.resources) ? skill.resources : [];
  const root = skill.uri.replace(/[^/]*$/, "");
  const all = files.length ? files : [{ uri: skill.uri }];
  /** @param {Json} file */
  const size = ({ size: bytes }) => (bytes === undefined ? "" : ` (${bytes.toLocaleString()} bytes)`);
  const select = element(
    "select",
    { id: "argument-file" },
    ...all.map((file) =>
      element("option", { value: file.uri }, decodeURIComponent(file.uri.replace(root, "")) + size(file))
    )
  );
  select.value = values?.uri ?? skill.uri;
  const field = labeled("File", select);
  const { name, description, ...others } = skill.frontmatter ?? {};
  const rows = facts(Object.fromEntries(Object.entries(others).filter(([, value]) => typeof value !== "object")));
  return show("skills", skill, null, {
    heading: skill.title,
    sub: skill.uri,
    about: skill.description,
    badges: [badge(files.length ? `${files.length} ${files.length === 1 ? "file" : "files"}` : "made at each read")],
    parts: [field, ...(rows.length ? [element("dl", "facts", ...rows)] : [])],
    read: () => ({ uri: select.value }),
    verb: "Read",
    save: null,
    request: (given) => ({ method: "resources/read", params: given }),
    send: async (method, params, options) => {
      const result = await request(method, params, options);
      return {
        ...result,
        checked: await verdict(
          files.find(({ uri }) => uri === params.uri),
          result
        )
      };
    },
    draw: ({ checked, ...result }) => [...checked, ...contents(result.contents ?? [])],
    extra: [
      folded("Definition", [
        { uri: skill.uri, frontmatter: skill.frontmatter, resources: skill.resources },
        "Definition"
      ])
    ]
  });
}

// Events: the types that the server declares, and subscriptions by stream or polling.

export const EVENTS = "io.modelcontextprotocol/events";
const KEPT = 200;
const POLL_MS = [200, 10_000]; // minimum, default

export const loadEvents = async () => session.client?.list("events/list", "events") ?? [];

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

  /** @param {Json} event */
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
    if (this.#list.childElementCount > KEPT) this.#list.lastElementChild?.remove();
    write(this.#says, `${count(this.total)} ${this.total === 1 ? "event" : "events"}, the newest first`);
  }

  miss() {
    this.#list.prepend(
      element("li", "soft small", "Some events may be missing, because the server no longer has all of them.")
    );
  }
}

/**
 * Receive events by a stream until the user stops it.
 *
 * @param {Json} params
 * @param {Arrivals} arrivals
 * @param {AbortSignal} signal
 */
function stream(params, arrivals, signal) {
  /** @param {string} method @param {Json} params */
  const notified = (method, { truncated, ...event }) => {
    if (method === "notifications/events/event") arrivals.add(event);
    else if (truncated) arrivals.miss();
  };
  return request("events/stream", params, { signal, notified });
}

/** @param {Json} params @param {Arrivals} arrivals @param {AbortSignal} signal */
async function poll(params, arrivals, signal) {
  let cursor;
  for (;;) {
    const page = await request("events/poll", cursor === undefined ? params : { ...params, cursor }, { signal });
    for (const event of page.events) arrivals.add(event);
    if (page.truncated) arrivals.miss();
    cursor = page.cursor;
    if (!page.hasMore) await wait(Math.max(page.nextPollMs ?? POLL_MS[1], POLL_MS[0]), signal);
  }
}

/** @param {Json} params @param {boolean} streams @param {SendOptions} options */
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

/** @param {Json} item @param {Json | null} values */
export function eventCard(item, values) {
  const form = draft("events", item.name, item.inputSchema, () =>
    schemaForm(item.inputSchema ?? { type: "object" }, { id: "argument" })
  );
  const streams = !session.client?.handshake && (item.delivery ?? []).includes("push");
  return show("events", item, values, {
    heading: item.name,
    about: item.description,
    badges: (item.delivery ?? []).map((/** @type {string} */ each) => badge(each)),
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
