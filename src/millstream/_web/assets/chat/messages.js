// Messages: parsing, and rendering by day and sender with their delivery state.

import { $, element, icon, makeButton } from "../dom.js";
import { markdown } from "../render/markdown.js";
import { copy, copyable } from "../shell/controls.js";

const LONGEST = 20_000; // maximum characters rendered as Markdown
const TOGETHER_MS = 5 * 60_000;
export const DRAWN = 400; // maximum messages of a channel
const TOLD = 20; // messages of tools whose senders are remembered until they arrive
const HEARD = 2_000; // ids kept to detect duplicates

const days = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const hours = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/**
 * Return the time of a message as a Date; null if it's invalid, because programs can publish any data.
 *
 * @param {unknown} time
 */
function moment(time) {
  const at = typeof time === "number" ? new Date(time * 1_000) : typeof time === "string" ? new Date(time) : null;
  return at && Number.isFinite(at.getTime()) ? at : null;
}

/**
 * Parse an event: sender, text, and time. Programs may publish plain text. The server vouches for the name of `user`,
 * and anyone can put any name into the data.
 *
 * @param {{data: string, id: string, user?: {name?: string}}} event
 */
export function read({ data, id, user }) {
  const known = user?.name ?? "";
  const unnamed = user && !known ? "Someone" : ""; // not the server
  try {
    const value = JSON.parse(data);
    const text =
      value && typeof value === "object"
        ? (value.message ?? value.text)
        : typeof value === "string"
          ? value
          : undefined;
    if (text !== undefined)
      return {
        id,
        name: known || String(value.name || unnamed),
        known: Boolean(known),
        text: String(text),
        at: moment(value.time),
        key: typeof value.key === "string" ? value.key : ""
      };
  } catch {
    // Plain text.
  }
  return { id, name: known || unnamed, known: Boolean(known), text: data, at: null, key: "" };
}

/** Render a text as Markdown, with copy buttons for code. HTML is shown as text. @param {string} text */
export function body(text) {
  if (text.length > LONGEST) return [element("p", {}, text)];
  return markdown(text).map((node) => {
    node.removeAttribute("dir"); // inherit the direction of the bubble
    if (node.nodeName !== "PRE") return node;
    node.dir = "ltr";
    const language = node.ariaLabel === "Code" ? "" : node.ariaLabel;
    node.ariaLabel = language ? `Code in ${language}` : "Code";
    return copyable(node, "Copy the code");
  });
}

/**
 * Return the mark beside another's name: who has signed in, or, where people sign in, whose name isn't known.
 *
 * @param {boolean | undefined} known
 */
export function nameMark(known) {
  if (!known && !document.getElementById("account")) return null;
  const title = known ? "Signed in under this name" : "This name was typed. The server doesn't know who it is.";
  const mark = element("span", { className: `name-mark ${known ? "known" : "badge"}`, title });
  mark.append(...(known ? [icon("check"), element("span", "visually-hidden", title)] : ["not checked"]));
  return mark;
}

/** @param {Date} at */
const dayName = (at) => {
  const today = new Date();
  const before = new Date(today.getTime() - 86_400_000);
  return at.toDateString() === today.toDateString()
    ? "Today"
    : at.toDateString() === before.toDateString()
      ? "Yesterday"
      : days.format(at);
};

/**
 * @typedef {object} Entry a message, or an event such as "Ada joined"
 * @property {"message" | "event"} kind
 * @property {string} text
 * @property {string} [id]
 * @property {string} [name] of the sender
 * @property {boolean} [known] whether the server vouches for the name
 * @property {Date | null} [at]
 * @property {string} [day]
 * @property {boolean} [own]
 * @property {string} [channel] of the user's own message
 * @property {string} [state] delivery state of the user's own message: "", "sending", "waiting", or "failed"
 * @property {string} [reason] why it failed
 * @property {string} [look] of an event
 * @property {string | null} [left] member who left
 * @property {number} [when] time of an event
 * @property {HTMLElement} [node]
 *
 * @typedef {Entry & {channel: string, name: string, at: Date, key: string, byTool: boolean}} Own the user's own message
 *
 * @typedef {object} Actions
 * @property {(entry: Own) => void} retry
 * @property {(entry: Own) => void} edit
 * @property {(entry: Entry) => string} address
 * @property {() => boolean} found whether the list shows search results
 */

/** The state of a channel. Only the open channel is drawn. */
export class Conversation {
  /** @type {Entry[]} */
  entries = [];
  /** @type {Set<string>} ids of recent messages */
  drawn = new Set();
  unread = 0;
  /** @type {Entry | null} the first unread entry */
  mark = null;
  /** @type {Map<string, Json>} by client id */
  members = new Map();
  ready = false; // its history has arrived
  live = false; // its subscription is active
  present = false; // its members are loaded
  /** @type {import("../hub.js").Subscription | null} */
  subscription = null;
  failed = "";
  draft = "";
  /** @type {Map<string, number>} name -> expiry time */
  typing = new Map();
  /** @type {Map<string, {name: string, known: boolean}>} text that a tool is about to send -> who asked for it */
  senders = new Map();

  /** @param {Entry} entry */
  add(entry) {
    this.entries.push(entry);
    if (this.entries.length > DRAWN) this.entries.shift();
  }

  /** Note who asks a tool to send a text. @param {string} text @param {{name: string, known: boolean}} sender */
  expect(text, sender) {
    this.senders.set(text, sender);
    if (this.senders.size > TOLD) this.senders.delete(this.senders.keys().next().value ?? "");
  }

  /** Record the id of a received message. @param {string} id */
  hears(id) {
    this.drawn.add(id);
    if (this.drawn.size > HEARD) this.drawn.delete(this.drawn.values().next().value ?? "");
  }
}

/**
 * Return the nodes of an entry, given the previous entry.
 *
 * @param {Entry} entry
 * @param {Entry | null | undefined} before
 * @param {Actions} actions
 */
export function draw(entry, before, actions) {
  if (entry.kind === "event") {
    entry.day ??= before?.day;
    return [element("li", { className: `event ${entry.look ?? ""}`, dir: "auto" }, entry.text)];
  }
  const nodes = [];
  const day = entry.at?.toDateString();
  const last = before?.kind === "message" ? before : null;
  const newDay = day && day !== before?.day;
  entry.day = day ?? before?.day;
  if (newDay && entry.at)
    nodes.push(
      element("li", "day", element("time", { dateTime: entry.at.toISOString().slice(0, 10) }, dayName(entry.at)))
    );
  const together =
    last &&
    !newDay &&
    last.name === entry.name &&
    last.known === entry.known &&
    last.own === entry.own &&
    (!entry.at || !last.at || Number(entry.at) - Number(last.at) < TOGETHER_MS);
  // Tools of the server send without a name.
  const who = entry.own ? "You" : entry.name || $("server-name").textContent || "Server";
  const head = element(
    "header",
    together ? "visually-hidden" : "",
    element("strong", { dir: "auto" }, who),
    entry.own || !entry.name ? null : nameMark(entry.known)
  );
  if (entry.at)
    head.append(
      element("time", { dateTime: entry.at.toISOString(), title: entry.at.toLocaleString() }, hours.format(entry.at))
    );
  const bubble = element("div", { className: "bubble markdown", dir: "auto" }, ...body(entry.text));
  const node = element(
    "li",
    `message${entry.own ? " own" : ""}${together ? "" : " first"}${entry.state ? ` ${entry.state}` : ""}`,
    head,
    element("div", "line", bubble, entry.state ? null : linkButton(entry, actions)),
    state(/** @type {Own} */ (entry), actions) // others have no state
  );
  entry.node = node;
  return [...nodes, node];
}

/**
 * Create a button that copies a link to a message or, in search results, shows it in the conversation.
 *
 * @param {Entry} entry
 * @param {Actions} actions
 */
function linkButton(entry, { address, found }) {
  if (!entry.id) return null;
  const searching = found();
  const does = searching ? "Show in the conversation" : "Copy a link to this message";
  return makeButton(
    { className: "quiet small square to-message", title: does, "aria-label": does },
    () => {
      if (searching) location.hash = new URL(address(entry)).hash;
      else copy(address(entry), "Copied a link to this message.");
    },
    icon(searching ? "next" : "link")
  );
}

/** @param {Own} entry @param {Actions} actions */
function state(entry, { retry, edit }) {
  if (!entry.state) return null;
  if (entry.state === "sending") return element("p", "fate soft", "Sending…");
  if (entry.state === "waiting") return element("p", "fate soft", "Waiting for the connection");
  const again = makeButton("quiet small", () => retry(entry), "Try again");
  const change = makeButton("quiet small", () => edit(entry), "Edit");
  return element(
    "div",
    { className: "fate bad", role: "alert" },
    icon("alert"),
    element("span", {}, `Not sent. ${entry.reason}`),
    again,
    change
  );
}

/** Create the line above the first unread message. */
export const unreadLine = () => element("li", "unread", "New");

/**
 * Draw all entries of a channel.
 *
 * @param {Conversation} conversation
 * @param {Actions} actions
 * @param {(entry: Entry) => boolean} matches
 */
export function drawAll(conversation, actions, matches) {
  const nodes = [];
  let before = null;
  for (const entry of conversation.entries) {
    if (!matches(entry)) continue;
    if (entry === conversation.mark) nodes.push(unreadLine());
    nodes.push(...draw(entry, before, actions));
    before = entry;
  }
  $("messages").replaceChildren(...nodes);
}
