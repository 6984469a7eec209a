// Recent calls, or the calls of a period or with an error; errors by message; and clients by name and version.

import { $, clock, count, element, facts, icon, ms, openDialog, pretty, size, wrapped, write } from "../dom.js";
import { colored } from "../render/json.js";
import { clearTrouble, fetchJson } from "../shell/connection.js";
import { copyable } from "../shell/controls.js";

import { LiveTable, cellBadge, cellButton, column, errorColumns, number } from "./table.js";

const EVERY_MS = 2_000;
export const OTHER = "_other";
export const OTHER_SAYS = "Names that this server doesn't have, counted together to save memory.";

/** @param {Json} call */
const title = (call) =>
  call.method === "tools/call" ? call.name || call.method : call.name ? `${call.method} ${call.name}` : call.method;
/** @param {Json} call */
const outcome = ({ outcome: word }) => word.replaceAll("_", " ");

/** @param {Json} call */
function show(call) {
  const rows = facts({
    When: new Date(call.at * 1_000).toLocaleString(),
    Took: ms(call.ms),
    Outcome: outcome(call) || "ok",
    Error: call.error,
    Incident: call.incident,
    Caller: call.caller,
    Client: call.client,
    Transport: call.transport,
    Revision: call.revision,
    Answer: size(call.bytes)
  });
  let text = call.arguments;
  try {
    text = pretty(JSON.parse(call.arguments));
  } catch {
    // Truncated: shown as text.
  }
  const block = wrapped("Arguments", "ltr", ...colored(text ?? ""));
  const told = call.arguments
    ? copyable(block, "Copy the arguments")
    : element(
        "p",
        "soft small",
        call.arguments === ""
          ? "The call had no arguments."
          : "Arguments are kept for calls that fail or are slow, and for others while “Recent calls” is open, up to a limit of size."
      );
  const parts = [
    element("h2", { id: "call-title", className: "one-line" }, title(call)),
    element("dl", "facts", ...rows),
    element("h3", {}, "Arguments"),
    told
  ];
  const foot = element("div", "row end");
  if (call.method === "tools/call" && document.querySelector('.bar nav a[href="inspect"]')) {
    const given = call.arguments && !call.arguments.endsWith("…") ? `&args=${encodeURIComponent(call.arguments)}` : "";
    foot.append(
      element(
        "a",
        { className: "button", href: `inspect#tool=${encodeURIComponent(call.name)}${given}` },
        "Open in the inspector"
      )
    );
  }
  foot.append(element("button", { type: "submit" }, "Close"));
  openDialog(
    { "aria-labelledby": "call-title", id: "call" },
    element("form", { method: "dialog", className: "stack tight" }, ...parts, foot)
  );
}

/** @type {{since: number, until: number, total: number} | null} the selected period */
let time = null;
/** @type {Json | null} the selected error */
let error = null;
/** @type {(...given: any[]) => void} */
let go = () => {};
/** @type {(...given: any[]) => void} */
let cleared = () => {};
/** @param {Json} call */
const isInTime = (call) => !time || (call.at >= time.since && call.at < time.until);

/**
 * Whether a text matches an error message, where each `…` matches any text.
 *
 * @param {string} text
 * @param {string} message
 */
function isOf(text, message) {
  let from = 0;
  return message.split("…").every((part) => {
    const at = text.indexOf(part, from);
    from = at + part.length;
    return at >= 0;
  });
}

const recent = new LiveTable($("recent"), {
  name: "Recent calls",
  sort: "at",
  search: $("call-filter"),
  pager: $("call-tools"),
  empty: ["No calls yet", "The next call appears here within two seconds."],
  key: (call) => call.key,
  words: (call) =>
    `${title(call)} ${call.caller} ${call.client} ${call.outcome} ${call.error} ${call.arguments ?? ""} ${call.incident}`,
  fits: (call) =>
    isInTime(call) &&
    (!$("call-failed").checked || call.outcome !== "") &&
    (!error || (call.by_server === error.by_server && isOf(call.error || outcome(call), error.message))),
  columns: [
    column("at", "When", (call) => clock(new Date(call.at * 1_000)), {
      narrow: true,
      down: true,
      csv: (call) => new Date(call.at * 1_000).toISOString()
    }),
    {
      id: "what",
      title: "What",
      head: true,
      sort: title,
      fill: (cell, call) => (cellButton(cell, call, title(call), show).title = title(call))
    },
    number("ms", "Took", (call) => ms(call.ms), { narrow: true }),
    {
      id: "outcome",
      title: "Outcome",
      narrow: true,
      sort: (call) => call.outcome,
      fill: (cell, call) =>
        cellBadge(cell, outcome(call) || "ok", call.by_server ? "bad" : call.outcome ? "warn" : "plain")
    },
    column("caller", "Caller", (call) => call.caller || "–"),
    column("client", "Client", (call) => call.client || "–"),
    {
      id: "arguments",
      title: "Error or arguments",
      wide: true,
      fill: (cell, call) => {
        write(cell, call.error || (call.arguments ?? ""));
        cell.dir = "auto";
        cell.classList.toggle("raised", call.by_server);
      }
    }
  ]
});
$("call-failed").onchange = () => recent.draw(true);

/** @param {number} seconds */
const moment = (seconds) => {
  const date = new Date(seconds * 1_000);
  return date.toDateString() === new Date().toDateString()
    ? clock(date)
    : `${date.toLocaleDateString(undefined, { day: "numeric", month: "short" })} ${clock(date)}`;
};

/** @param {Json} row */
const cause = (row) => (row.by_server ? "Server" : "Client");

const errors = new LiveTable($("error-table"), {
  name: "Errors by message",
  sort: "count",
  search: $("error-filter"),
  pager: $("error-tools"),
  empty: ["No errors", "Errors are counted here by message."],
  key: (row) => `${cause(row)}\n${row.message}`,
  words: (row) => `${row.message} ${row.tools.join(" ")} ${cause(row)}`,
  columns: [
    {
      id: "message",
      title: "Message",
      head: true,
      wide: true,
      sort: ({ message }) => message,
      fill: (cell, row) => {
        const button = cellButton(cell, row, row.message, callsOf);
        button.title = `${row.example}\nShow the calls`;
        button.dir = "auto";
      }
    },
    number("count", "Count", undefined, { narrow: true }),
    column("tools", "Tools and methods", ({ tools }) => tools.join(", "), {
      sort: ({ tools }) => tools[0] ?? "",
      says: ({ tools }) => tools.join(", ")
    }),
    {
      id: "by_server",
      title: "Caused by",
      narrow: true,
      sort: cause,
      fill: (cell, row) => cellBadge(cell, cause(row), row.by_server ? "bad" : "plain")
    },
    number("first", "First", (row) => moment(row.first), { narrow: true }),
    number("last", "Last", (row) => moment(row.last), { narrow: true })
  ]
});

const clients = new LiveTable($("clients"), {
  name: "Clients",
  sort: "calls",
  empty: ["No clients yet", "Each calling program is listed here, by the name that it sends."],
  key: (client) => `${client.name}\n${client.version}\n${client.revision}`,
  columns: [
    column(
      "name",
      "Name",
      (client) => (client.name === OTHER ? "Other clients" : client.name || "Unnamed (REST, curl)"),
      {
        head: true,
        wide: true,
        says: (client) => (client.name === OTHER ? "All names beyond the first 200." : client.name)
      }
    ),
    column("version", "Version", (client) => client.version || "–"),
    number("calls", "Calls"),
    ...errorColumns(),
    column("transport", "Transport"),
    column("revision", "Revision", (client) => client.revision || "–"),
    number("last", "Last call", (client) => clock(new Date(client.last * 1_000)))
  ]
});

/** Add a unique key to each call. Identical calls are numbered from the oldest. @param {Json[]} calls */
function keyed(calls) {
  const alike = new Map();
  for (const call of [...calls].sort((one, other) => one.at - other.at)) {
    const what = `${call.at} ${call.method} ${call.name} ${call.caller}`;
    alike.set(what, (alike.get(what) ?? 0) + 1);
    call.key = `${what} ${alike.get(what)}`;
  }
  return calls;
}

const PARTS = ["calls", "errors", "clients"];
let shown = "";
let asked = 0;

async function load() {
  if (document.hidden || !PARTS.includes(shown)) return;
  const mine = ++asked;
  const found = await fetchJson("dashboard/calls", "the recent calls");
  if (!PARTS.includes(shown)) clearTrouble("the recent calls"); // the reply came after this part was closed
  if (!found || mine !== asked) return;
  recent.show(keyed(found.calls));
  errors.show(found.errors);
  clients.show(found.clients);
  say(found.calls.filter(isInTime).length);
}

/** Set the open tab. @param {string} part */
export function showCalls(part) {
  shown = part;
  if (!PARTS.includes(shown)) clearTrouble("the recent calls");
  load();
}

/**
 * `open(part)` is called to open a tab, and `forget()` when the selected period is cleared.
 *
 * @param {{open: (part: string) => void, forget: () => void}} page
 */
export function connectCalls({ open, forget }) {
  go = open;
  cleared = forget;
}

const NOTE =
  "Arguments are kept for calls that fail or are slow, and for others while this tab is open. Secrets are hidden.";

function say(kept = 0) {
  const chips = [
    [
      $("call-time"),
      time && `${moment(time.since)} – ${clock(new Date(time.until * 1_000))}`,
      "Show the calls of all times"
    ],
    [$("call-error"), error?.message, "Show the calls with any error"]
  ];
  for (const [chip, text, title] of chips) {
    chip.hidden = !text;
    if (!text || chip.dataset.text === text) continue;
    chip.dataset.text = text;
    chip.replaceChildren(element("span", { className: "one-line", dir: "auto" }, text), icon("close"));
    chip.title = title;
    chip.ariaLabel = `${text}. ${title}`;
  }
  const most = time ? Math.max(time.total, kept) : 0;
  write(
    $("call-note"),
    time ? `${count(kept)} of ${count(most)} ${most === 1 ? "call is" : "calls are"} kept: the newest.` : NOTE
  );
  $("call-note").title = $("call-note").textContent;
}

/**
 * Show the calls of a period, in whole seconds since 1970. `total` is their number, and `words` is the filter.
 *
 * @param {number} since
 * @param {number} until
 * @param {number} total
 */
export function callsBetween(since, until, total, words = "") {
  time = { since, until, total };
  error = null;
  $("call-filter").value = words;
  say();
  go("calls");
  recent.draw(true);
}

/** @param {Json} row */
function callsOf(row) {
  error = row;
  time = null;
  cleared();
  $("call-filter").value = "";
  say();
  go("calls");
  recent.draw(true);
}

$("call-time").onclick = () => {
  time = null;
  cleared();
  say();
  $("call-filter").focus();
  load();
};
$("call-error").onclick = () => {
  error = null;
  say();
  $("call-filter").focus();
  recent.draw(true);
};
say();

setInterval(load, EVERY_MS);
