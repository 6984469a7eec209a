// The newest records of the audit log. The tab is hidden without an audit log.

import { $, clock } from "../dom.js";
import { clearTrouble, fetchJson } from "../shell/connection.js";
import { LiveTable, cellBadge, column } from "./table.js";

const EVERY_MS = 5_000;
/** @param {Json} record */
const who = ({ subject, address }) => subject || address || "–";
/** @param {Json} record */
const what = ({ method, target }) => (target ? `${method} ${target}` : method);

const table = new LiveTable($("audit-table"), {
  name: "Audit records",
  sort: "at",
  empty: ["No records", "The next call that matches the filter is listed here."],
  key: (record) => `${record.at} ${record.seq ?? ""} ${record.method} ${record.target ?? ""} ${record.address ?? ""}`,
  columns: [
    column("at", "When", (record) => clock(new Date(record.at)), {
      down: true,
      says: (record) => new Date(record.at).toLocaleString(),
      csv: (record) => new Date(record.at).toISOString()
    }),
    column("who", "Who", who, {
      head: true,
      sort: who,
      says: (record) => [record.issuer, record.client, record.address].filter(Boolean).join(", ")
    }),
    column("what", "What", what, { wide: true, sort: what }),
    column("transport", "Transport", (record) => record.transport ?? "", { sort: (record) => record.transport ?? "" }),
    {
      id: "outcome",
      title: "Result",
      sort: (record) => record.outcome ?? "ok",
      fill: (cell, record) =>
        cellBadge(cell, record.outcome ?? "ok", (record.outcome ?? "ok") === "ok" ? "plain" : "bad")
    }
  ]
});

let asked = 0;
let kept = false;
let open = false;
/** @type {(...given: any[]) => void} */
let told = () => {};

async function load() {
  const mine = ++asked;
  const query = new URLSearchParams({ q: $("audit-filter").value, failed: $("audit-failed").checked ? "1" : "" });
  const found = await fetchJson(`dashboard/audit?${query}`, "the audit log");
  if (!found || mine !== asked) return;
  kept = found.kept;
  told(kept);
  table.show(found.records);
}

/** Tell whether the tab is open. @param {boolean} now */
export function showAudit(now) {
  open = now;
  if (open) load();
  else clearTrouble("the audit log");
}

/** Find out whether there's an audit log, and call `tell` with the answer. @param {(kept: boolean) => void} tell */
export function lookForAudit(tell) {
  told = tell;
  load();
}

$("audit-filter").oninput = load;
$("audit-failed").onchange = load;
setInterval(() => kept && open && !document.hidden && load(), EVERY_MS);
