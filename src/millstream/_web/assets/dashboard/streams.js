// Connections: the slowest readers, open connections by transport, and channels.

import { $, count, duration, element, showContentOrEmpty, size, write } from "../dom.js";
import { clearTrouble, fetchJson } from "../shell/connection.js";
import { LiveTable, column, number } from "./table.js";

const EVERY_MS = 2_000;
const LATE = 64 * 1024; // slower readers are shown in red; at 512 KiB they're disconnected

const readers = new LiveTable($("readers"), {
  name: "Readers",
  sort: "waiting",
  empty: ["No readers", "Open streams are listed here, with the data that their readers haven't received yet."],
  key: (reader) => `${reader.transport} ${reader.who} ${reader.channels} ${reader.number}`,
  columns: [
    column("who", "Who", (reader) => reader.who || "–", { head: true, says: (reader) => reader.who }),
    column("transport", "Over"),
    column("channels", "Channels", (reader) => reader.channels.join(", ") || "–", {
      wide: true,
      sort: undefined,
      says: (reader) => reader.channels.join(", ")
    }),
    number("seconds", "Open for", (reader) => (reader.seconds === null ? "–" : duration(reader.seconds))),
    number("waiting", "Not taken", (reader) => size(reader.waiting), { raised: (reader) => reader.waiting > LATE })
  ]
});

/** @param {HTMLTableElement} table @param {HTMLElement} empty @param {string[][]} rows */
function fill(table, empty, rows) {
  /** @param {string[]} row */
  const cells = (row) =>
    row.map((value, index) => element("td", index === row.length - 1 ? "number" : "one-line", String(value)));
  const body = table.tBodies[0];
  const text = JSON.stringify(rows);
  if (body.dataset.rows !== text) {
    body.dataset.rows = text;
    body.replaceChildren(...rows.map((row) => element("tr", {}, ...cells(row))));
  }
  showContentOrEmpty(table, empty, rows.length > 0);
}

/** Draw the connections of a snapshot. @param {Json} snapshot */
export function drawStreams(snapshot) {
  /** @param {Json} each */
  const row = (each) => [each.transport, each.revision || "–", count(each.count)];
  fill($("connections"), $("no-connections"), snapshot.connections.map(row));
  fill($("sessions"), $("no-sessions"), snapshot.sessions.map(row));
  const hub = snapshot.hub ?? { channels: {}, disconnected: {}, published: 0, delivered: 0 };
  const channels = Object.entries(hub.channels)
    .sort((one, other) => other[1] - one[1])
    .slice(0, 12);
  fill(
    $("channels"),
    $("no-channels"),
    channels.map(([name, subscribers]) => [name, count(subscribers)])
  );
  const slow = hub.disconnected.slow ?? 0;
  write($("published"), count(hub.published));
  write($("delivered"), count(hub.delivered));
  write($("cut-slow"), count(slow));
  write($("cut-other"), count(Object.values(hub.disconnected).reduce((sum, each) => sum + each, 0) - slow));
  $("cut-slow").classList.toggle("raised", slow > 0);
}

let open = false;

async function load() {
  if (!open || document.hidden) return;
  const found = await fetchJson("dashboard/readers", "the readers of streams");
  if (!open) clearTrouble("the readers of streams"); // the reply came after this part was closed
  /** @type {Json[]} */
  const rows = found?.readers ?? [];
  if (found) readers.show(rows.map((reader, number) => ({ ...reader, number })));
}

/** Tell whether the tab is open. @param {boolean} now */
export function showStreams(now) {
  open = now;
  if (!open) clearTrouble("the readers of streams");
  load();
}

setInterval(load, EVERY_MS);
