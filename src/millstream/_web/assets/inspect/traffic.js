// The messages, with a row for each exchange: a request, its response, and its notifications. Unrelated messages have
// their own rows. The list is drawn at most a few times a second.

import { page } from "./host.js";
import { $, clock, count, element, fact, figure, icon, isAtEnd, makeButton, pre, pretty } from "../dom.js";
import { isKeepAlive } from "../mcp/client.js";
import { colored } from "../render/json.js";
import { copyButton, drawWhenReleased } from "../shell/controls.js";

const KEPT = 500; // exchanges
const KEPT_NOTES = 200; // of one exchange, the newest
const SHOWN = 300;
const SHOWN_NOTES = 100;
const PAUSE_MS = 120; // minimum between two redraws, to keep the page responsive

/**
 * @typedef {{number: number, out: boolean, message: Json, how: Json, at: Date, when: number}} Entry one message
 * @typedef {object} Exchange
 * @property {Entry} first the request, or a single message
 * @property {Entry | null} answer
 * @property {Entry[]} notes the newest notifications
 * @property {number} noted number of notifications
 * @property {string} method
 * @property {string} about
 * @property {string} problem why there's no response
 * @property {{item: HTMLElement, details: HTMLDetailsElement, summary: HTMLElement} | null} row
 */

/** @type {Exchange[]} */
const exchanges = [];
/** @type {Map<string, Exchange>} "true 3" -> exchange of the sent request with id 3 */
const asked = new Map();
/** @type {Set<Exchange>} exchanges that were added or changed since the last redraw */
const fresh = new Set();
/** @type {WeakMap<Element, Exchange>} */
const exchangeOf = new WeakMap();
let messages = 0;
let failures = 0;
let due = false;

/** @param {unknown} value */
const text = (value) => (typeof value === "string" ? value : "");
/** @type {(params?: Json) => string} */
const aboutOf = ({ name, uri, ref, clientInfo, message } = {}) =>
  text(name) || text(uri) || text(ref?.name) || text(ref?.uri) || text(clientInfo?.name) || text(message);

/** Return the exchange of a notification, by its progress token or the request in whose response it arrived. */
/** @type {(message: Json, how: Json) => Exchange | null} */
function ownerOf({ params }, how) {
  const id = params?.progressToken ?? params?._meta?.["io.modelcontextprotocol/subscriptionId"] ?? how.of;
  if (id === undefined) return null;
  return exchanges.findLast(({ first }) => first.message.id === id && first.out && first.message.method) ?? null;
}

/** @type {Record<string, string>} */
const ENDS = { "Canceled.": "canceled", "Disconnected.": "closed" }; // by this page
/** @param {Exchange} exchange */
const failed = ({ answer, problem }) =>
  !(problem in ENDS) && Boolean(problem || answer?.message.error || answer?.message.result?.isError === true);

/**
 * Add a message.
 *
 * @param {boolean} out whether it was sent
 * @param {Json} message
 * @param {{how: string, headers: Record<string, string>, of?: number}} how transport and headers; `of` is the id of the
 *   request in whose response it arrived
 */
export function record(out, message, how) {
  const entry = { number: ++messages, out, message, how, at: new Date(), when: performance.now() };
  const answered = message.method ? null : asked.get(`${!out} ${message.id}`);
  const owner = message.method && message.id === undefined ? ownerOf(message, how) : null;
  if (answered) {
    asked.delete(`${!out} ${message.id}`);
    answered.answer = entry;
    if (!exchanges.includes(answered)) exchanges.push(answered); // the list was cleared in between
    if (failed(answered)) failures += 1;
    draw(answered);
  } else if (owner) {
    owner.noted += 1;
    owner.notes.push(entry);
    if (owner.notes.length > KEPT_NOTES) owner.notes.shift();
    draw(owner);
  } else {
    const method = message.method ?? (message.error ? `error ${message.error.code}` : "response");
    /** @type {Exchange} */
    const made = {
      first: entry,
      answer: null,
      notes: [],
      noted: 0,
      method,
      about: aboutOf(message.params),
      problem: "",
      row: null
    };
    if (message.method && message.id !== undefined) asked.set(`${out} ${message.id}`, made);
    if (!message.method && message.error) {
      made.problem = message.error.message;
      failures += 1;
    }
    exchanges.push(made);
    for (const gone of exchanges.splice(0, exchanges.length - KEPT)) {
      if (failed(gone)) failures -= 1;
      gone.row?.item.remove();
    }
    draw(made);
  }
  return entry;
}

/** Record that a request failed without a response. @param {Json} message @param {Error} error */
export function fail(message, error) {
  const exchange = asked.get(`true ${message.id}`);
  if (!exchange) return;
  if (!(error.message in ENDS)) asked.delete(`true ${message.id}`); // some servers answer a canceled request
  exchange.problem = error.name === "TypeError" ? "The server can't be reached." : error.message;
  if (failed(exchange)) failures += 1;
  draw(exchange);
}

/** @param {Exchange} exchange */
const words = (exchange) =>
  `${exchange.method} ${exchange.about} ${exchange.answer?.message.error?.message ?? ""}`.toLowerCase();

/** @param {Exchange} exchange */
function fits(exchange) {
  const wanted = $("traffic-filter").value.toLowerCase().split(/\s+/);
  return wanted.every((word) => words(exchange).includes(word) || (word === "failed" && failed(exchange)));
}

let drawn = -PAUSE_MS;

/** Schedule a redraw of an exchange. @param {Exchange} exchange */
function draw(exchange) {
  fresh.add(exchange);
  if (due) return;
  due = true;
  const rest = PAUSE_MS - (performance.now() - drawn);
  if (rest <= 0) requestAnimationFrame(flush);
  else setTimeout(() => requestAnimationFrame(flush), rest);
}

function flush() {
  due = false;
  drawn = performance.now();
  drawWhenReleased($("traffic"), () => {
    const list = $("traffic");
    const box = /** @type {HTMLElement} */ (list.parentElement);
    const end = isAtEnd(box);
    const shown = [...fresh].slice(-SHOWN).filter(fits);
    fresh.clear();
    for (const exchange of shown) {
      if (exchange.row) update(exchange);
      else list.append(row(exchange));
    }
    for (const item of [...list.children].slice(0, -SHOWN)) {
      const gone = exchangeOf.get(item);
      if (gone) gone.row = null;
      item.remove();
    }
    tell();
    if (end) box.scrollTop = box.scrollHeight;
  });
}

/** Redraw the whole list. */
function redraw() {
  const box = /** @type {HTMLElement} */ ($("traffic").parentElement);
  const end = isAtEnd(box);
  fresh.clear();
  for (const exchange of exchanges) exchange.row = null;
  $("traffic").replaceChildren(...exchanges.filter(fits).slice(-SHOWN).map(row));
  tell();
  if (end) box.scrollTop = box.scrollHeight;
}

function tell() {
  page.count("messages", failures || exchanges.length, failures ? "bad" : "");
  const empty = $("traffic").childElementCount === 0;
  $("no-traffic").hidden = !empty;
  $("no-traffic").firstElementChild?.replaceChildren(exchanges.length ? "No exchange matches" : "No messages yet");
}

/** Return the outcome of a request in a word. @param {Exchange} exchange */
function outcome({ first, answer, problem }) {
  if (problem) return ENDS[problem] ?? "failed";
  if (!first.message.method || first.message.id === undefined) return "";
  if (!answer) return "open";
  if (answer.message.error) return `error ${answer.message.error.code}`;
  if (answer.message.result?.resultType === "input_required") return "asks";
  return answer.message.result?.isError === true ? "tool error" : "result";
}

/** @param {Exchange} exchange */
function head(exchange) {
  const { first, answer, method, about, noted } = exchange;
  const word = outcome(exchange);
  const way = element("span", { className: "way", "aria-hidden": "true" }, first.out ? "↑" : "↓"); // text is faster than an icon
  const what = element(
    "span",
    "what",
    element("span", "visually-hidden", first.out ? "sent " : "received "),
    element("span", about ? "soft" : "", method),
    about ? " " : "",
    about ? element("span", { dir: "auto" }, about) : ""
  );
  const notes = noted
    ? element(
        "span",
        { className: "count", title: noted === 1 ? "1 notification" : `${count(noted)} notifications` },
        count(noted)
      )
    : "";
  const shown =
    word && word !== "result" && word !== "open"
      ? element("span", "word", word)
      : word
        ? element("span", "visually-hidden", word)
        : "";
  const took = answer ? `${figure(answer.when - first.when)} ms` : clock(first.at);
  return [
    way,
    what,
    element(
      "span",
      "row marks",
      notes,
      shown,
      element("time", { dateTime: first.at.toISOString(), title: clock(first.at) }, took)
    )
  ];
}

/** @param {Exchange} exchange */
function row(exchange) {
  const summary = element("summary", {});
  const details = element("details", {}, summary);
  const item = element("li", { id: `message-${exchange.first.number}` }, details);
  // Rendered when opened, because most exchanges never are.
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(...opened(exchange));
    if (details.open) details.scrollIntoView({ block: "nearest" });
  });
  exchangeOf.set(item, exchange);
  exchange.row = { item, details, summary };
  update(exchange);
  return item;
}

/** Update an existing row. @param {Exchange} exchange */
function update(exchange) {
  const { row: shown, first } = exchange;
  if (!shown) return;
  const { item, details, summary } = shown;
  item.className = `${first.out ? "out" : "in"}${failed(exchange) ? " failed" : ""}`;
  summary.replaceChildren(...head(exchange));
  if (details.childElementCount === 1 || details.contains(document.activeElement)) return;
  const open = new Set([...details.querySelectorAll("details[open]")].map((each) => each.className));
  details.replaceChildren(summary, ...opened(exchange));
  for (const each of details.querySelectorAll("details")) each.open = open.has(each.className);
}

/**
 * Render a message: its headers and its JSON.
 *
 * @param {Entry} entry
 * @param {string} title
 * @param {string} look
 * @param {HTMLElement | null} [button] beside the one that copies it
 */
function message({ message: value, how }, title, look, button) {
  const json = pretty(value);
  const headers = Object.entries(how.headers ?? {}).map(([name, each]) => fact(name, secret(name) ? "••••" : each));
  const kept = headers.length
    ? element(
        "details",
        `headers-of ${look}`,
        element("summary", {}, `Headers (${headers.length})`),
        element("dl", "facts headers", ...headers)
      )
    : null;
  const bar = element(
    "div",
    "row message-tools",
    element("strong", {}, title),
    element("span", { className: "soft small grow one-line", title: how.how }, how.how),
    button,
    copyButton(() => json, `Copy the ${title.toLowerCase()}`)
  );
  return element("section", { className: "message", "aria-label": title }, bar, kept, pre(title, ...colored(json)));
}

/** Render the content of an opened row. @param {Exchange} exchange */
function opened(exchange) {
  const { first, answer, notes, noted, problem } = exchange;
  const asks = first.message.method && first.message.id !== undefined;
  const again =
    asks && first.out
      ? makeButton(
          "quiet small",
          () => page.resend(first.message.method, first.message.params ?? {}),
          icon("edit"),
          "Edit and resend"
        )
      : null;
  const parts = [message(first, asks ? "Request" : "Message", "one", again)];
  if (noted) parts.push(folded(notes, noted));
  if (answer) parts.push(message(answer, "Response", "two"));
  else if (problem) parts.push(element("p", "notice bad", problem));
  else if (asks) parts.push(element("p", "soft small", "No response yet."));
  return parts;
}

/** @param {Entry[]} notes @param {number} noted */
function folded(notes, noted) {
  /** @param {Entry} note */
  const line = ({ at, message: { method, params = {} } }) => {
    const value =
      params.progress === undefined
        ? ""
        : isKeepAlive(params)
          ? "keep-alive"
          : params.total === undefined
            ? String(params.progress)
            : `${params.progress} of ${params.total}`;
    const said =
      text(params.message) || text(params.uri) || (params.data === undefined ? "" : JSON.stringify(params.data));
    return element(
      "li",
      {},
      element("time", { dateTime: at.toISOString() }, clock(at)),
      element("span", "soft", method.replace("notifications/", "")),
      element("span", { className: "what", dir: "auto" }, [value, said].filter(Boolean).join(", "))
    );
  };
  const title = noted === 1 ? "1 notification" : `${count(noted)} notifications`;
  const rest = noted - Math.min(notes.length, SHOWN_NOTES);
  const list = element("ol", "folded-notes");
  const all = element(
    "details",
    "notes-of",
    element("summary", {}, title),
    rest ? element("p", "soft small", `The newest ${count(noted - rest)} are shown.`) : "",
    list
  );
  all.addEventListener(
    "toggle",
    () => all.open && !list.childElementCount && list.append(...notes.slice(-SHOWN_NOTES).map(line))
  );
  return all;
}

/** Whether a header is secret, so it's hidden on the screen and in transcripts. @param {string} name */
const secret = (name) =>
  /^(authorization|cookie|x-api-key|proxy-authorization|mcp-session-id)$/i.test(name) || /key|token|secret/i.test(name);

/** Return all messages as JSON Lines, without secrets. */
export function transcript() {
  /** @type {Array<[Entry, Entry | null]>} each message, and the request that it answers */
  const all = [];
  for (const { first, answer, notes } of exchanges) {
    for (const each of [first, ...notes]) all.push([each, null]);
    if (answer) all.push([answer, first]);
  }
  const lines = all
    .sort(([one], [other]) => one.number - other.number)
    .map(([{ number, out, message: value, how, at, when }, question]) => {
      const headers = Object.fromEntries(
        Object.entries(how.headers ?? {}).map(([name, each]) => [name, secret(name) ? "…" : each])
      );
      return JSON.stringify({
        n: number,
        time: at.toISOString(),
        direction: out ? "sent" : "received",
        via: how.how,
        headers,
        ...(question ? { ms: Math.round((when - question.when) * 10) / 10, answers: question.number } : {}),
        message: value
      });
    });
  return lines.map((each) => `${each}\n`).join("");
}

export function clear() {
  for (const exchange of exchanges) exchange.row = null;
  exchanges.length = 0;
  failures = 0;
  fresh.clear();
  $("traffic").replaceChildren();
  tell();
}

$("traffic-filter").oninput = redraw;
