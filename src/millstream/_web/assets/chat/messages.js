// The conversation: messages as they are drawn, by day and by person, with links and code; and those on their way.

import { $, element } from "../dom.js";
import { inline } from "../render/markdown.js";
import { copyable } from "../shell/copy.js";
import { icon } from "../shell/icons.js";

const FENCE = /^```[ \t]*([\w+-]*)[ \t]*\n([\s\S]*?)(?:\n```[ \t]*$|$(?![\s\S]))/m;
const TOGETHER_MS = 5 * 60_000;
export const DRAWN = 400; // messages that a channel keeps
const HEARD = 2_000; // ids that are remembered: what is heard twice comes soon after the first time

const days = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long", year: "numeric" });
const hours = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** When it was said, if that is a time: any program may publish anything here. */
function moment(time) {
  const at = typeof time === "number" ? new Date(time * 1_000) : typeof time === "string" ? new Date(time) : null;
  return at && Number.isFinite(at.getTime()) ? at : null;
}

/** What was said, by whom and when. Other programs send plain text to the channel, too. */
export function read({ data, id }) {
  try {
    const value = JSON.parse(data);
    if (value && typeof value === "object" && "message" in value) return { id, name: String(value.name || ""), text: String(value.message), at: moment(value.time), key: typeof value.key === "string" ? value.key : "" };
  } catch {
    // Plain text.
  }
  return { id, name: "", text: data, at: null, key: "" };
}

/** A text with its code blocks, inline code and links as nodes; everything else as it was written. */
export function body(text) {
  const nodes = [];
  let rest = text;
  while (rest) {
    const found = FENCE.exec(rest);
    if (!found) break;
    const before = rest.slice(0, found.index).replace(/\n$/, "");
    if (before) nodes.push(element("p", {}, ...spans(before)));
    const code = element("pre", { tabIndex: 0, "aria-label": found[1] ? `Code in ${found[1]}` : "Code", dir: "ltr" }, element("code", {}, found[2]));
    nodes.push(copyable(code, "Copy the code"));
    rest = rest.slice(found.index + found[0].length).replace(/^\n/, "");
  }
  if (rest) nodes.push(element("p", {}, ...spans(rest)));
  return nodes;
}

const INLINE = /`[^`\n]+`|\bhttps?:\/\/[^\s<>]*[^\s<>.,:;!?'")\]]/g;

/** Code and addresses only: what else looks like Markdown is what somebody typed. */
function spans(text) {
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(text.slice(from, found.index), ...inline(found[0]));
    from = found.index + found[0].length;
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}

const dayName = (at) => {
  const today = new Date();
  const before = new Date(today.getTime() - 86_400_000);
  const named = at.toDateString() === today.toDateString() ? "Today" : at.toDateString() === before.toDateString() ? "Yesterday" : days.format(at);
  return named;
};

/** One channel's messages. Only the one that is open is drawn. */
export class Conversation {
  entries = []; // {kind: "message" | "event", ...}
  drawn = new Set(); // ids that were heard lately
  unread = 0;
  mark = null; // the first entry that was not read when the channel was last left
  members = new Map();
  ready = false; // its past was heard
  live = false; // it is heard now
  present = false; // its members are known
  failed = "";
  draft = "";
  typing = new Map(); // who -> until when

  add(entry) {
    this.entries.push(entry);
    if (this.entries.length > DRAWN) this.entries.shift();
  }

  /** Remember that this was heard. */
  hears(id) {
    this.drawn.add(id);
    if (this.drawn.size > HEARD) this.drawn.delete(this.drawn.values().next().value);
  }
}

/** The node of an entry, given the one before it. */
export function draw(entry, before, actions) {
  if (entry.kind === "event") return [element("li", { className: `event ${entry.look ?? ""}`, dir: "auto" }, entry.text)];
  const nodes = [];
  const day = entry.at?.toDateString();
  const last = before?.kind === "message" ? before : null;
  const newDay = day && day !== before?.day;
  entry.day = day ?? before?.day;
  if (newDay) nodes.push(element("li", { className: "day" }, element("time", { dateTime: entry.at.toISOString().slice(0, 10) }, dayName(entry.at))));
  const together = last && !newDay && last.name === entry.name && last.own === entry.own && (!entry.at || !last.at || entry.at - last.at < TOGETHER_MS);
  const who = entry.own ? "You" : entry.name || "Somebody";
  const head = element("header", { className: together ? "visually-hidden" : "" }, element("strong", { dir: "auto" }, who));
  if (entry.at) head.append(element("time", { dateTime: entry.at.toISOString(), title: entry.at.toLocaleString() }, hours.format(entry.at)));
  const bubble = element("div", { className: "bubble", dir: "auto" }, ...body(entry.text));
  const node = element("li", { className: `message${entry.own ? " own" : ""}${together ? "" : " first"}${entry.state ? ` ${entry.state}` : ""}` }, head, bubble, state(entry, actions));
  entry.node = node;
  return [...nodes, node];
}

function state(entry, { retry, edit }) {
  if (!entry.state) return null;
  if (entry.state === "sending") return element("p", { className: "fate soft" }, "Sending…");
  if (entry.state === "waiting") return element("p", { className: "fate soft" }, "Waiting for the connection");
  const again = element("button", { type: "button", className: "quiet small" }, "Try again");
  again.addEventListener("click", () => retry(entry));
  const change = element("button", { type: "button", className: "quiet small" }, "Edit");
  change.addEventListener("click", () => edit(entry));
  return element("div", { className: "fate bad", role: "alert" }, icon("alert"), element("span", {}, `Not sent. ${entry.reason}`), again, change);
}

/** What stands above the first message that wasn't read. */
export const unreadLine = () => element("li", { className: "unread" }, "New");

/** Draw all of a channel. */
export function drawAll(conversation, actions) {
  const nodes = [];
  let before = null;
  for (const entry of conversation.entries) {
    if (entry === conversation.mark) nodes.push(unreadLine());
    nodes.push(...draw(entry, before, actions));
    before = entry;
  }
  $("messages").replaceChildren(...nodes);
}
