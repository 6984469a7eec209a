// The workers, and facts about the server and its store.

import { $, count, duration, facts, figure, ms, size, write } from "../dom.js";
import { LiveTable, column, number } from "./table.js";

/** @type {Record<string, string>} */
const WORDS = { true: "yes", false: "no" };
/** @type {Json} */
const fixed = {};

/** @param {number} seconds */
const moment = (seconds) =>
  new Date(seconds * 1_000).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });

const workers = new LiveTable($("workers"), {
  name: "Workers",
  sort: "since",
  empty: ["No workers yet", "Each worker process is listed here."],
  key: (row) => row.name,
  columns: [
    column("host", "Host", undefined, { head: true, wide: true, says: (row) => row.host }),
    number("pid", "Process", (row) => String(row.pid)),
    number("calls_per_second", "Calls/s"),
    number("streams", "Streams"),
    number("memory_bytes", "Memory", (row) => (row.memory_bytes === null ? "–" : size(row.memory_bytes))),
    number("lag_ms", "Loop lag", (row) => ms(row.lag_ms)),
    number("since", "Uptime", (row) => duration(Date.now() / 1_000 - row.since), {
      sort: (row) => -row.since,
      says: (row) => `Since ${moment(row.since)}`,
      csv: (row) => moment(row.since)
    })
  ]
});

/** Draw a row for each worker. @param {Json[]} rows */
export function drawWorkers(rows) {
  workers.show(rows);
  write(
    $("fleet"),
    rows.length > 1
      ? `The figures above are for all ${count(rows.length)} workers together. The log is from the worker that serves this page.`
      : "One process serves everything."
  );
}

/** @param {Json} part */
const filled = (part) => part && `${figure(part.bytes / 2 ** 20)} of ${figure(part.max_bytes / 2 ** 20)} MiB`;

/** Return the store's state and usage. @param {Json | null} store */
function storeHealth(store) {
  if (!store) return {};
  const log = store.log ?? {};
  return {
    Store: store.kind,
    "Store answers": store.up,
    "Stored values": filled(store.values),
    "Stored events": filled(log.hub),
    "Stored mailboxes": filled(log.mailbox),
    "Streams of calls": filled(log.call)
  };
}

/** Draw the facts about the process and the store. @param {Json} snapshot */
export function drawServer(snapshot) {
  const figures = snapshot.process;
  const descriptors = figures.open_descriptors;
  const all = {
    ...fixed,
    ...storeHealth(snapshot.store),
    "CPU time": `${figure(figures.cpu_seconds)} s`,
    "Open files":
      descriptors === null
        ? null
        : `${count(descriptors)} of ${figures.max_descriptors === null ? "any number" : count(figures.max_descriptors)}`,
    "Tasks of the loop": count(figures.tasks),
    "Garbage collections": count(figures.collections)
  };
  const text = JSON.stringify(all);
  if ($("server").dataset.facts === text) return;
  $("server").dataset.facts = text;
  $("server").replaceChildren(
    ...facts(Object.fromEntries(Object.entries(all).map(([name, value]) => [name, WORDS[value] ?? value])))
  );
}

/** Handle the facts that don't change while the server runs. @param {Json} info */
export function takeFacts(info) {
  $("server-name").textContent = info.title || info.name;
  document.title = `${info.title || info.name} · Dashboard`;
  $("server-version").textContent = info.version;
  for (const name of Object.keys(fixed)) delete fixed[name];
  Object.assign(fixed, info.facts);
}
