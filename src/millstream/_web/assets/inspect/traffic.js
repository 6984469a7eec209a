// The messages as they went over the wire: direction, what each answers, how long it took, its headers. Drawn together,
// a few times a second at most, however many come.

import { $, clock, element, figure, pretty } from "../dom.js";
import { colored } from "../render/json.js";
import { copyButton } from "../shell/copy.js";
import { icon } from "../shell/icons.js";
import { drawWhenReleased } from "../shell/press.js";

const KEPT = 500;
const SHOWN = 300;
const FLOOD = 40; // Of more than that at once only the newest are drawn, and the others when it is calm again.
const CALM_MS = 400;
const PAUSE_MS = 120; // At least between two drawings: a flood of messages must leave time for everything else.

/** @typedef {{number: number, out: boolean, message: object, how: object, at: Date, when: number, what: string, took: number | null, failed: boolean, question: object | null, answer: object | null, problem?: string}} Entry */

/** @type {Entry[]} */
const entries = [];
const asked = new Map(); // "true 3" -> the entry of the request with id 3 that went out
let waiting = [];
let made = 0;
let replay = () => {};
let counted = () => {};

/** `edit(method, params)` is called to send a request again; `count(total, failed)` when the list changes. */
export function connect({ edit, count }) {
  replay = edit;
  counted = count;
}

/** What a message is, and for an answer what it answers. */
function describe(entry) {
  const { out, message } = entry;
  if (message.method) {
    if (message.id !== undefined) asked.set(`${out} ${message.id}`, entry);
    const about = message.params?.name ?? message.params?.uri ?? message.params?.ref?.name ?? message.params?.ref?.uri ?? message.params?.clientInfo?.name ?? "";
    entry.what = [message.method, typeof about === "string" ? about : ""].filter(Boolean).join(" ");
    return;
  }
  const key = `${!out} ${message.id}`;
  const question = asked.get(key) ?? null;
  asked.delete(key);
  entry.question = question;
  if (question) {
    question.answer = entry;
    entry.took = entry.when - question.when;
  }
  const method = question?.what ?? (message.id === undefined ? "the connection" : `request ${message.id}`);
  entry.failed = Boolean(message.error) || message.result?.isError === true;
  if (message.error) entry.what = `error ${message.error.code} for ${method}`;
  else if (message.result?.resultType === "input_required") entry.what = `questions for ${method}`;
  else entry.what = `${message.result?.isError ? "tool error" : "result"} of ${method}`;
}

/**
 * Take a message in.
 *
 * @param {boolean} out whether it went out
 * @param {object} message
 * @param {{how: string, headers: Record<string, string>}} how how it traveled
 */
export function record(out, message, how) {
  const entry = { number: ++made, out, message, how, at: new Date(), when: performance.now(), what: "", took: null, failed: false, question: null, answer: null };
  describe(entry);
  entries.push(entry);
  if (entries.length > KEPT) entries.splice(0, entries.length - KEPT);
  waiting.push(entry);
  if (waiting.length === 1) schedule();
  return entry;
}

/** A request got no answer. */
export function fail(message, error) {
  const entry = asked.get(`true ${message.id}`);
  if (!entry) return;
  asked.delete(`true ${message.id}`);
  Object.assign(entry, { failed: true, problem: error.name === "TypeError" ? "The server can't be reached." : error.message });
  $(`message-${entry.number}`)?.replaceWith(line(entry));
  tell();
}

const fits = (entry) => {
  const words = $("traffic-filter").value.toLowerCase().split(/\s+/);
  return words.every((word) => entry.what.toLowerCase().includes(word) || (word === "failed" && entry.failed));
};

let drawn = -PAUSE_MS;
let calm = 0;

/** Draw with the next frame, or in a flood a little later. */
function schedule() {
  const rest = PAUSE_MS - (performance.now() - drawn);
  if (rest <= 0) requestAnimationFrame(flush);
  else setTimeout(() => requestAnimationFrame(flush), rest);
}

function flush() {
  drawn = performance.now();
  const list = $("traffic");
  const box = list.parentElement;
  const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  const fresh = waiting.filter(fits);
  waiting = [];
  if (fresh.length > FLOOD) {
    clearTimeout(calm);
    calm = setTimeout(redraw, CALM_MS);
  }
  list.append(...fresh.slice(-FLOOD).map(line));
  while (list.childElementCount > SHOWN) list.firstChild.remove();
  tell();
  if (follows) box.scrollTop = box.scrollHeight;
}

/** Draw everything anew: another filter, or the end of a flood. */
function redraw() {
  const box = $("traffic").parentElement;
  const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  drawWhenReleased($("traffic"), () => $("traffic").replaceChildren(...entries.filter(fits).slice(-SHOWN).map(line)));
  tell();
  if (follows) box.scrollTop = box.scrollHeight;
}

function tell() {
  counted(entries.length, entries.filter((each) => each.failed).length);
  const empty = $("traffic").childElementCount === 0;
  $("no-traffic").hidden = !empty;
  $("no-traffic").firstElementChild.textContent = entries.length ? "No message matches" : "No messages yet";
}

function line(entry) {
  const { out, what, took, failed, at } = entry;
  const summary = element(
    "summary", {},
    element("span", { className: "way", "aria-hidden": "true" }, out ? "↑" : "↓"), // Not an icon: there may be a thousand a second.
    element("span", { className: "what" }, element("span", { className: "visually-hidden" }, out ? "sent " : "received "), what),
    element("time", { dateTime: at.toISOString(), title: clock(at) }, took === null ? clock(at) : `${figure(took)} ms`),
  );
  const details = element("details", {}, summary);
  // Most are never opened: a message is written out when it is.
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(...opened(entry));
    if (details.open) details.scrollIntoView({ block: "nearest" });
  });
  return element("li", { id: `message-${entry.number}`, className: `${out ? "out" : "in"}${failed ? " failed" : ""}` }, details);
}

/** What an opened message shows. */
function opened(entry) {
  const { message, how, question, answer } = entry;
  const text = pretty(message);
  const tools = element("div", { className: "row message-tools" }, element("span", { className: "soft small grow one-line", title: how.how }, how.how), copyButton(() => text, "Copy message"));
  if (message.method && message.id !== undefined && entry.out) {
    const again = element("button", { type: "button", className: "quiet small" }, icon("edit"), "Edit and resend");
    again.addEventListener("click", () => replay(message.method, message.params ?? {}));
    tools.prepend(again);
  }
  const other = answer ?? question;
  if (other) {
    const jump = element("button", { type: "button", className: "quiet small" }, icon("link"), answer ? "Answer" : "Request");
    jump.addEventListener("click", () => show(other.number));
    tools.prepend(jump);
  }
  const headers = Object.entries(how.headers ?? {}).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, secret(name) ? "••••" : value)));
  const head = headers.length ? [element("details", {}, element("summary", {}, `Headers (${headers.length})`), element("dl", { className: "facts headers" }, ...headers))] : [];
  const problem = entry.problem ? [element("p", { className: "notice bad" }, entry.problem)] : [];
  return [tools, ...problem, ...head, element("pre", { tabIndex: 0, "aria-label": "Message", dir: "ltr" }, ...colored(text))];
}

/** What nobody should see on a shared screen, or in a transcript. */
const secret = (name) => /^(authorization|cookie|x-api-key|proxy-authorization|mcp-session-id)$/i.test(name) || /key|token|secret/i.test(name);

/** Open a message and bring it into view. */
export function show(number) {
  const item = $(`message-${number}`);
  if (!item) return;
  item.firstChild.open = true;
  item.scrollIntoView({ block: "nearest" });
  item.querySelector("summary").focus();
}

/** Everything as JSON Lines, one message to a line, without secrets. */
export function transcript() {
  const lines = entries.map(({ number, out, message, how, at, took, question }) => {
    const headers = Object.fromEntries(Object.entries(how.headers ?? {}).map(([name, value]) => [name, secret(name) ? "…" : value]));
    return JSON.stringify({ n: number, time: at.toISOString(), direction: out ? "sent" : "received", via: how.how, headers, ...(took === null ? {} : { ms: Math.round(took * 10) / 10 }), ...(question ? { answers: question.number } : {}), message });
  });
  return lines.map((each) => `${each}\n`).join("");
}

export function clear() {
  entries.length = 0;
  waiting = [];
  $("traffic").replaceChildren();
  tell();
}

$("traffic-filter").addEventListener("input", redraw);
