// The dashboard. An event stream sends the server's facts once, a snapshot each second, and the log. The charts of the
// selected range come from the history.

import { $, count, figure, makeButton, ms, save, store, stored, write } from "../dom.js";
import { fetchJson, showState } from "../shell/connection.js";
import { commands, shortcut } from "../shell/palette.js";
import { tabs } from "../shell/controls.js";
import { Feed } from "../hub.js";
import { lookForAudit, showAudit } from "./audit.js";
import { OTHER, OTHER_SAYS, callsBetween, connectCalls, showCalls } from "./calls.js";
import { LineChart, markTime, onPick } from "./charts.js";
import { drawHealth, drawUnknown } from "./health.js";
import { add, toggleLog } from "./log.js";
import { drawServer, drawWorkers, takeFacts } from "./server.js";
import { drawStreams, showStreams } from "./streams.js";
import { LiveTable, cellButton, errorColumns, number, tables } from "./table.js";

const MIB = 1_048_576;
/** @type {Array<[number, string, string]>} */
const RANGES = [
  [60, "1 min", "Last minute"],
  [900, "15 min", "Last 15 minutes"],
  [3_600, "1 h", "Last hour"],
  [86_400, "1 d", "Last day"]
];
/** @type {Record<number, number>} */
const AGAIN_MS = { 60: 1_000, 900: 5_000 };
const CHOSEN = "millstream.range";

/** @param {number} value */
const axisMs = (value) =>
  value >= 1_000 ? `${Number((value / 1_000).toPrecision(3))} s` : `${Number(value.toPrecision(3))} ms`;

const charts = {
  calls: new LineChart($("calls-chart"), {
    name: "Calls/s",
    says: "Calls per second, and those with an error of their client or of this server",
    atLeast: 4,
    series: [
      { name: "All", color: "--accent", fill: true },
      { name: "Client errors", short: "Client", color: "--warn", dash: "dotted" },
      { name: "Server errors", short: "Server", color: "--bad", dash: "dashed" }
    ]
  }),
  latency: new LineChart($("latency-chart"), {
    name: "Latency",
    atLeast: 0.1,
    format: (value, axis) => (axis ? axisMs(value) : ms(value)),
    series: [
      { name: "p50", color: "--series-1" },
      { name: "p95", color: "--series-2", dash: "dashed" },
      { name: "p99", color: "--series-3", dash: "dotted" }
    ]
  }),
  lag: new LineChart($("lag-chart"), {
    name: "Lag",
    says: "The worst delay of the event loop",
    atLeast: 2,
    format: (value, axis) => (axis ? axisMs(value) : ms(value)),
    series: [{ name: "Worst", color: "--series-1", fill: true }]
  }),
  cpu: new LineChart($("cpu-chart"), {
    name: "CPU",
    says: "CPU time, as a share of one core",
    atLeast: 10,
    format: (value) => `${figure(value)}%`.replace(/\.0+%/, "%"),
    series: [{ name: "CPU", color: "--series-1", fill: true }]
  }),
  memory: new LineChart($("memory-chart"), {
    name: "Memory",
    atLeast: 32,
    format: (value, axis) => `${axis || value < 10 ? Number(value.toPrecision(3)) : count(value)} MiB`,
    series: [{ name: "Resident", color: "--series-1", fill: true }]
  })
};

/** @type {number} */
let range = stored("session", CHOSEN, 60);
/** @type {{method: string, name: string} | null} the row shown in the charts */
let chosen = null;
/** @type {Json | null} */
let snapshot = null;
/** @type {Json | null} */
let past = null;
let asked = 0;
/** @type {{since: number, until: number} | null} the selected period */
let moment = null;
const [wanted, ...linked] = location.hash.slice(1).split("&");
/** @type {Record<string, number>} the range and the period of a link */
const link = Object.fromEntries(linked.map((each) => each.split("=")).map(([name, value]) => [name, Number(value)]));

// Tools and methods

/** @param {Json} row */
const key = (row) => `${row.method} ${row.name}`;
/** @param {Json} row */
const title = (row) =>
  row.method === "tools/call"
    ? row.name === OTHER
      ? "Other names"
      : row.name
    : row.method === OTHER
      ? "Other methods"
      : row.method;

const tools = new LiveTable($("tools"), {
  name: "Tools and methods",
  sort: "server_errors",
  search: $("tool-filter"),
  pager: $("tool-tools"),
  empty: ["No calls yet", "The first call appears here within a second."],
  key,
  words: (row) => `${title(row)} ${row.method}`,
  columns: [
    {
      id: "name",
      title: "Name",
      head: true,
      wide: true,
      sort: title,
      fill: (cell, row) => {
        const button = cellButton(cell, row, title(row), choose);
        button.ariaPressed = String(chosen !== null && key(row) === key(chosen));
        button.title = row.name === OTHER || row.method === OTHER ? OTHER_SAYS : title(row);
      }
    },
    number("calls", "Calls", undefined, { hint: "Calls in this range" }),
    ...errorColumns((row) => [row.server_errors, row.errors, row.p99_ms, row.calls, row.ever]),
    ...["p50", "p95", "p99"].map((id) => number(`${id}_ms`, id, (row) => ms(row[`${id}_ms`]), { narrow: true })),
    number("ever", "Since start")
  ]
});

/** @param {Json} row */
function choose(row) {
  chosen = chosen && key(chosen) === key(row) ? null : { method: row.method, name: row.name };
  tools.draw(false);
  load();
}

/** Draw all operations since the start, with their figures in the range. */
/** @param {Json[]} ever tools and methods */
function drawTools(ever) {
  const lately = new Map((past?.operations ?? []).map((/** @type {Json} */ row) => [key(row), row]));
  const rows = ever.map((row) => ({
    calls: 0,
    errors: 0,
    server_errors: 0,
    p50_ms: null,
    p95_ms: null,
    p99_ms: null,
    ...lately.get(key(row)),
    method: row.method,
    name: row.name,
    ever: row.calls
  }));
  tools.show(rows);
  parts.count("tools", rows.length || "");
  const other = rows.some((row) => row.name === OTHER || row.method === OTHER)
    ? " “Other names” are names that this server doesn't have."
    : "";
  write(
    $("chosen"),
    chosen
      ? `The charts show ${title(chosen)}. Select it again to see all.`
      : `Select a tool to see it in the charts.${other}`
  );
  $("chosen").title = $("chosen").textContent;
}

// Charts

/** @param {Json} found the history */
function drawCharts(found) {
  const { until, step, process } = found;
  /** @type {number[]} */
  const times = found.at;
  const began = times[process.memory_bytes.findIndex((/** @type {number | null} */ bytes) => bytes !== null)] ?? until;
  const seconds = Math.min(found.seconds, Math.max(60, until - began)); // a young server's charts begin with it
  const columns = chosen ? found.chosen : found.all;
  const axis = { times: times.map((t) => Math.min(t + step, until)), until, seconds, step };
  charts.calls.rename(chosen ? `Calls/s of ${title(chosen)}` : "Calls/s");
  charts.latency.rename(chosen ? `Latency of ${title(chosen)}` : "Latency");
  charts.calls.show(axis, [columns.rate, columns.client_error_rate, columns.server_error_rate]);
  charts.latency.show(axis, [columns.p50_ms, columns.p95_ms, columns.p99_ms]);
  charts.lag.show(axis, [process.lag_ms]);
  charts.cpu.show(axis, [process.cpu_percent]);
  charts.memory.show(axis, [
    process.memory_bytes.map((/** @type {number | null} */ bytes) => (bytes === null ? null : bytes / MIB))
  ]);
}

/** Show the calls of a period selected in the charts. @param {number} since @param {number} until */
function drillDown(since, until) {
  const { at = [], step, all, chosen: ofOne } = past ?? {};
  const calls = (chosen ? ofOne : all).calls;
  /** @type {number} */
  const total = at.reduce(
    (/** @type {number} */ sum, /** @type {number} */ t, /** @type {number} */ place) =>
      sum + (t + step > since && t < until ? (calls[place] ?? 0) : 0),
    0
  );
  moment = { since, until };
  markTime(moment);
  callsBetween(since, until, total, chosen ? title(chosen) : "");
}
onPick(drillDown);

// Ranges

const buttons = RANGES.map(([seconds, short, long]) => makeButton({ title: long }, () => turn(seconds), short));
$("ranges").append(...buttons);

/** @param {number} seconds */
function turn(seconds) {
  range = seconds;
  store("session", CHOSEN, seconds);
  buttons.forEach((button, place) => (button.ariaPressed = String(RANGES[place][0] === range)));
  load();
}

let timer = 0;

async function load() {
  clearTimeout(timer);
  const mine = ++asked;
  const query = new URLSearchParams({ seconds: String(range), ...(chosen ?? {}) });
  const found = await fetchJson(`dashboard/history?${query}`, "the history");
  if (mine !== asked) return;
  if (found) {
    past = found;
    drawCharts(found);
    draw();
    if (link.since > 0 && link.until > link.since && link.until < 1e10) drillDown(link.since, link.until);
    link.until = 0;
  }
  if (feedOpen) timer = setTimeout(() => document.hidden || load(), AGAIN_MS[range] ?? 15_000);
}
document.addEventListener("visibilitychange", () => document.hidden || load());

// Tabs below the charts

const PARTS = {
  tools: "Tools and methods",
  calls: "Recent calls",
  errors: "Errors",
  clients: "Clients",
  streams: "Streams",
  workers: "Workers",
  audit: "Audit",
  server: "Server"
};
const parts = tabs(
  $("parts"),
  Object.entries(PARTS).map(([id, name]) => ({ id, title: name, panel: `part-${id}` })),
  (id) => {
    writeLink();
    opened(id);
  }
);

/** Put the open part and the selected period into the address. */
function writeLink() {
  const period = moment ? `&range=${range}&since=${moment.since}&until=${moment.until}` : "";
  const part = parts.current() === "tools" ? "" : parts.current();
  // A new `location.hash` would scroll to the element with that id.
  history.replaceState(null, "", `${location.search}#${part}${period}`);
}
connectCalls({
  open: (id) => {
    parts.choose(id);
    const details = document.querySelector(".details");
    if (details && details.getBoundingClientRect().top > innerHeight / 2) details.scrollIntoView(); // as on a phone
  },
  forget: () => {
    moment = null;
    markTime(null);
    writeLink();
  }
});
$("save-table").onclick = () => {
  const id = $(`part-${parts.current()}`).querySelector(".table")?.id ?? "";
  save(`${parts.current()}.csv`, tables.get(id)?.csv() ?? "", "text/csv");
};
$("to-errors").onclick = () => parts.choose("errors");
$("tab-audit").hidden = true;
lookForAudit((kept) => {
  $("tab-audit").hidden = !kept;
  if (location.hash === "#audit" && kept && parts.current() !== "audit") goTo("audit");
});

/** @param {string} id */
function opened(id) {
  showCalls(id);
  showStreams(id === "streams");
  showAudit(id === "audit");
}

/** @param {string} id */
function goTo(id) {
  parts.choose(id, false);
  opened(id);
}
if (wanted in PARTS && wanted !== "audit") goTo(wanted);

// The stream

function draw() {
  if (!snapshot) return;
  if ($("main").classList.contains("stale")) drawUnknown();
  else drawHealth(snapshot, past);
  const ever = [...snapshot.tools, ...snapshot.methods];
  drawTools(ever);
  const [errors, failures] = ["errors", "server_errors"].map((id) => ever.reduce((sum, row) => sum + row[id], 0));
  parts.count("errors", errors ? count(errors) : "", failures ? "bad" : ""); // since the start, as in the table
}

/** @param {Json} taken */
function takeSnapshot(taken) {
  snapshot = taken;
  draw();
  drawStreams(taken);
  drawWorkers(taken.workers);
  parts.count("workers", taken.workers.length > 1 ? taken.workers.length : "");
  drawServer(taken);
}

let feedOpen = false;
/** @type {Record<string, (data: any) => void>} */
const take = { server: takeFacts, snapshot: takeSnapshot, log: add };
const feed = new Feed(
  "dashboard/events",
  (event) => take[event.type]?.(JSON.parse(event.data)),
  (state) => {
    showState($("state"), state, () => feed.retryNow());
    $("main").classList.toggle("stale", state.state !== "open" && snapshot !== null);
    const before = feedOpen;
    feedOpen = state.state === "open";
    if (!feedOpen) draw();
    if (feedOpen && !before) load();
  }
);

shortcut("/", "Filter the tools", () => {
  goTo("tools");
  $("tool-filter").focus();
});
shortcut("l", "Open or close the log", toggleLog);
RANGES.forEach(([seconds, , long], place) => shortcut(String(place + 1), long, () => turn(seconds)));
commands(() => [
  ...RANGES.map(([seconds, , long]) => ({ title: long, group: "Range", icon: "reload", run: () => turn(seconds) })),
  ...Object.entries(PARTS)
    .filter(([id]) => !$(`tab-${id}`).hidden)
    .map(([id, name]) => ({ title: name, group: "Details", run: () => parts.choose(id) })),
  { title: "Open or close the log", group: "Details", icon: "up", keys: "l", run: toggleLog },
  ...[...(snapshot?.tools ?? [])].map((row) => ({
    title: title(row),
    group: "Show in the charts",
    icon: "eye",
    run: () => key(row) !== (chosen && key(chosen)) && choose(row)
  }))
]);

// A link shows its range, or a longer one if the period has become older.
const least = link.range ? Math.max(link.range, Date.now() / 1_000 - link.since) : range;
turn((RANGES.find(([seconds]) => seconds >= least) ?? RANGES[RANGES.length - 1])[0]);
feed.start();
