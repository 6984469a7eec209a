// The dashboard: one event stream brings the server's facts once, a snapshot each second, and the log.

import { LineChart, spark } from "./charts.js";
import { $, count, duration, either, element, figure, write } from "./dom.js";
import { add } from "./logview.js";
import { Feed, showState } from "./sse.js";

const SECONDS = 60;
const MIB = 1_048_576;

const callsChart = new LineChart($("calls-chart"), {
  name: "Calls per second", unit: "/s", seconds: SECONDS, atLeast: 4,
  series: [{ name: "All", color: "--accent", fill: true }, { name: "Chosen", color: "--text", dash: "dashed" }],
});
const latencyChart = new LineChart($("latency-chart"), {
  name: "Latency", unit: "ms", seconds: SECONDS, atLeast: 0.1,
  series: [
    { name: "p50", color: "--accent", fill: true },
    { name: "p95", color: "--text", dash: "dashed" },
    { name: "p99", color: "--text-soft", dash: "dotted" },
  ],
});
const lagChart = new LineChart($("lag-chart"), {
  name: "Event loop lag", unit: "ms", seconds: SECONDS, atLeast: 2,
  series: [{ name: "Lag", color: "--accent", fill: true }, { name: "Worst, 60 s", color: "--text-soft", dash: "dotted" }],
});
const cpuChart = new LineChart($("cpu-chart"), {
  name: "CPU, of one core", unit: "%", seconds: SECONDS, atLeast: 10,
  series: [{ name: "CPU", color: "--accent", fill: true }],
});
const memoryChart = new LineChart($("memory-chart"), {
  name: "Resident memory", unit: "MiB", seconds: SECONDS, atLeast: 32,
  series: [{ name: "Resident", color: "--accent", fill: true }],
});

const history = { all: [], lag: [], cpu: [], memory: [], rows: new Map() };
let instance = "";
let workers = 0;
let chosen = null;
let picked = false;

function keep(samples, t, ...values) {
  samples.push({ t, values });
  while (samples.length && samples[0].t < t - SECONDS - 2) samples.shift();
}

/** The server's own count of the seconds before this page was opened. */
function prefill(snapshot) {
  const seconds = snapshot.per_second.slice(0, -1);
  const start = Math.max(0, seconds.length - Math.floor(snapshot.uptime_seconds));
  history.all = seconds.slice(start).map((calls, index, all) => ({ t: snapshot.at_seconds - (all.length - index), values: [calls] }));
}

/** What was drawn before more workers were heard of: the sums know their past, too. */
function addPast(snapshot) {
  for (const sample of history.all) {
    const calls = snapshot.per_second.at(Math.round(sample.t - snapshot.at_seconds) - 1);
    if (calls !== undefined) sample.values = [calls];
  }
}

const moment = (seconds, dateStyle, timeStyle) => new Date(seconds * 1_000).toLocaleString(undefined, { dateStyle, timeStyle });
const key = (row) => (row.method === "tools/call" ? row.name : row.method);

/** What the charts show. Rates are the server's: a sum over workers that come and go says nothing by its growth. */
function remember(snapshot, rows) {
  const t = snapshot.at_seconds;
  if (workers === 0) prefill(snapshot);
  else if (snapshot.workers.length > workers) addPast(snapshot);
  workers = snapshot.workers.length;
  keep(history.all, t, snapshot.per_second.at(-1));
  for (const row of rows) {
    const name = key(row);
    if (!history.rows.has(name)) history.rows.set(name, []);
    keep(history.rows.get(name), t, row.rate, row.p50_ms, row.p95_ms, row.p99_ms);
  }
  keep(history.lag, t, snapshot.loop_lag_ms.last, snapshot.loop_lag_ms.worst);
  keep(history.cpu, t, snapshot.process.cpu_percent);
  const memory = snapshot.process.resident_bytes;
  keep(history.memory, t, memory === null ? null : memory / MIB);
}

function drawCharts() {
  const row = history.rows.get(chosen) ?? [];
  const own = new Map(row.map((sample) => [sample.t, sample.values[0]]));
  callsChart.rename(1, chosen ?? "No tool yet");
  callsChart.show(history.all.map(({ t, values }) => ({ t, values: [values[0], own.get(t) ?? null] })));
  latencyChart.show(row.map(({ t, values }) => ({ t, values: values.slice(1) })));
  $("latency-of").textContent = chosen ? `of ${chosen}` : "";
  lagChart.show(history.lag);
  cpuChart.show(history.cpu);
  memoryChart.show(history.memory);
}

// Tiles

function drawTiles(snapshot) {
  write($("rate"), figure(history.all.at(-1)?.values[0] ?? 0));
  write($("calls"), count(snapshot.calls));
  write($("errors"), count(snapshot.errors));
  const share = snapshot.calls ? (100 * snapshot.errors) / snapshot.calls : 0;
  write($("error-share"), `${figure(share)} % of all calls`);
  const sum = (rows) => rows.reduce((total, row) => total + row.count, 0);
  write($("session-count"), count(sum(snapshot.sessions)));
  write($("connection-count"), count(sum(snapshot.connections)));
  const subscribers = snapshot.hub?.subscribers ?? 0;
  write($("subscriber-count"), `${count(subscribers)} ${subscribers === 1 ? "subscriber" : "subscribers"} to channels`);
  write($("uptime"), duration(snapshot.uptime_seconds));
  write($("started"), `since ${moment(snapshot.workers[0].since, "medium", "short")}`);
}

// Tables

const lines = new Map();

function choose(name) {
  chosen = name;
  for (const [each, line] of lines) line.button.setAttribute("aria-pressed", String(each === name));
  drawCharts();
}

function newLine(row) {
  const name = key(row);
  const button = element("button", { type: "button", className: "quiet name", "aria-pressed": String(name === chosen) }, name);
  button.addEventListener("click", () => {
    picked = true;
    choose(name);
  });
  const canvas = element("canvas", { className: "spark", "aria-hidden": "true" });
  const cells = Array.from({ length: 6 }, () => element("td", { className: "number" }));
  const node = element("tr", {}, element("th", { scope: "row" }, button), element("td", { className: "sketch" }, canvas), ...cells);
  return { button, canvas, cells, node };
}

/** Without the lines of what is not told any more: it went with its worker. */
function dropLines(kept, names) {
  for (const [name, line] of kept) {
    if (names.includes(name)) continue;
    line.node.remove();
    kept.delete(name);
  }
}

function drawRows(rows) {
  dropLines(lines, rows.map(key));
  for (const row of rows) {
    const name = key(row);
    if (!lines.has(name)) {
      lines.set(name, newLine(row));
      $("tools").replaceChildren(...rows.map(key).filter((each) => lines.has(each)).map((each) => lines.get(each).node));
    }
    const line = lines.get(name);
    const rates = history.rows.get(name).map((sample) => sample.values[0]).filter((rate) => rate !== null);
    const texts = [figure(rates.at(-1) ?? 0), figure(row.p50_ms), figure(row.p95_ms), figure(row.p99_ms), count(row.calls), count(row.errors)];
    texts.forEach((text, index) => write(line.cells[index], text));
    line.cells[5].classList.toggle("raised", row.errors > 0);
    spark(line.canvas, rates, SECONDS);
  }
  const there = rows.length > 0;
  $("tools").closest(".scroll").hidden = !there;
  $("no-tools").hidden = there;
}

function fill(table, empty, rows) {
  const cells = (row) => row.map((value, index) => element("td", { className: index === row.length - 1 ? "number" : "" }, String(value)));
  const body = table.tBodies[0];
  const text = JSON.stringify(rows);
  if (body.dataset.rows !== text) {
    body.dataset.rows = text;
    body.replaceChildren(...rows.map((row) => element("tr", {}, ...cells(row))));
  }
  either(table, empty, rows.length > 0);
}

function drawPeers(snapshot) {
  const row = (each) => [each.transport, each.revision || "–", count(each.count)];
  fill($("connections"), $("no-connections"), snapshot.connections.map(row));
  fill($("sessions"), $("no-sessions"), snapshot.sessions.map(row));
  const hub = snapshot.hub;
  const channels = Object.entries(hub?.channels ?? {}).sort((one, other) => other[1] - one[1]).slice(0, 12);
  fill($("channels"), $("no-channels"), channels.map(([name, subscribers]) => [name, count(subscribers)]));
  $("hub").hidden = !hub;
  if (!hub) return;
  const cut = hub.cut ?? {};
  const slow = cut.slow ?? 0;
  write($("published"), count(hub.published));
  write($("delivered"), count(hub.delivered));
  write($("cut-slow"), count(slow));
  write($("cut-other"), count(Object.values(cut).reduce((sum, each) => sum + each, 0) - slow));
  $("cut-slow").classList.toggle("raised", slow > 0);
}

const workerLines = new Map();

function newWorkerLine(worker) {
  const cells = Array.from({ length: 6 }, () => element("td", { className: "number" }));
  return { cells, node: element("tr", {}, element("th", { scope: "row" }, worker.host), ...cells) };
}

/** A row for each worker, where there are several. */
function drawWorkers(rows) {
  $("fleet").hidden = rows.length < 2;
  write($("worker-count"), count(rows.length));
  dropLines(workerLines, rows.map((row) => row.name));
  for (const row of rows) {
    if (!workerLines.has(row.name)) workerLines.set(row.name, newWorkerLine(row));
    const { cells } = workerLines.get(row.name);
    const memory = row.memory_bytes === null ? null : row.memory_bytes / MIB;
    const texts = [row.pid, count(row.calls_per_second), count(row.streams), figure(memory), figure(row.lag_ms), moment(row.since, "short", "medium")];
    texts.forEach((text, index) => write(cells[index], text));
  }
  const order = rows.map((row) => workerLines.get(row.name).node);
  if (order.some((node, index) => $("workers").rows[index] !== node)) $("workers").replaceChildren(...order);
}

// The server: what never changes, and what its snapshot says

const fixed = {};
const WORDS = { true: "yes", false: "no" };

function facts(values) {
  const nodes = Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return nodes.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, WORDS[value] ?? String(value))));
}

const filled = (part) => part && `${figure(part.bytes / MIB)} of ${figure(part.max_bytes / MIB)} MiB`;

/** Whether the store answers, and how full it is. */
function storeHealth(store) {
  const log = store?.log ?? {};
  return store
    ? {
        Store: store.kind,
        "Store answers": store.up,
        "Stored values": filled(store.values),
        "Stored events": filled(log.hub),
        "Stored mailboxes": filled(log.mailbox),
        "Streams of calls": filled(log.call),
      }
    : {};
}

function drawServer(snapshot) {
  const figures = snapshot.process;
  const descriptors = figures.open_descriptors;
  const live = {
    ...storeHealth(snapshot.store),
    "CPU time": `${figure(figures.cpu_seconds)} s`,
    "Open files": descriptors === null ? null : `${count(descriptors)} of ${figures.max_descriptors === null ? "any number" : count(figures.max_descriptors)}`,
    "Tasks of the loop": count(figures.tasks),
    "Garbage collections": count(figures.collections),
  };
  const all = { ...fixed, ...live };
  const text = JSON.stringify(all);
  if ($("server").dataset.facts === text) return;
  $("server").dataset.facts = text;
  $("server").replaceChildren(...facts(all));
}

function takeServer(info) {
  if (instance && instance !== info.instance) {
    Object.assign(history, { all: [], lag: [], cpu: [], memory: [], rows: new Map() });
    workers = 0;
  }
  instance = info.instance;
  $("server-name").textContent = document.title = info.title || info.name;
  $("server-version").textContent = info.version;
  Object.assign(fixed, info.facts);
}

function takeSnapshot(snapshot) {
  const rows = [...snapshot.tools, ...snapshot.methods];
  remember(snapshot, rows);
  if (!picked && snapshot.tools.length) {
    const busiest = snapshot.tools.reduce((most, row) => (row.calls > most.calls ? row : most));
    chosen = chosen ?? key(busiest);
  }
  write($("window"), Math.round(snapshot.window_seconds));
  drawTiles(snapshot);
  drawRows(rows);
  drawPeers(snapshot);
  drawWorkers(snapshot.workers);
  drawServer(snapshot);
  drawCharts();
}

const take = { server: takeServer, snapshot: takeSnapshot, log: add };
const feed = new Feed(
  "dashboard/events",
  (event) => take[event.type]?.(JSON.parse(event.data)),
  (state) => {
    showState($("state"), $("note"), state);
    $("main").classList.toggle("stale", state.state !== "open" && workers > 0);
  },
);
feed.start();
