// The newest records of the audit log. The section stays away where no log is kept.

import { $, clock, either, element } from "./dom.js";

const EVERY = 5_000;
const who = ({ subject, address }) => subject || address || "–";

let asked = 0;

function draw({ at, method, target, outcome = "ok", transport = "", ...record }) {
  const when = new Date(at);
  const row = element("tr", { className: outcome === "ok" ? "" : "bad" });
  row.append(
    element("td", {}, element("time", { dateTime: at, title: when.toLocaleString() }, clock(when))),
    element("td", { title: [record.issuer, record.client, record.address].filter(Boolean).join(", ") }, who(record)),
    element("td", {}, target ? `${method} ${target}` : method),
    element("td", {}, transport),
    element("td", {}, outcome),
  );
  return row;
}

async function load() {
  const mine = ++asked;
  const query = new URLSearchParams({ q: $("audit-filter").value, failed: $("audit-failed").checked ? "1" : "" });
  let found;
  try {
    const reply = await fetch(`dashboard/audit?${query}`);
    if (!reply.ok) return;
    found = await reply.json();
  } catch {
    return; // the page says by itself that the server is away
  }
  if (mine !== asked) return;
  $("audit").hidden = !found.kept;
  $("audit-rows").replaceChildren(...found.records.map(draw));
  either($("audit-table"), $("no-audit"), found.records.length > 0);
}

$("audit-filter").addEventListener("input", load);
$("audit-failed").addEventListener("change", load);
setInterval(() => {
  if (!document.hidden && !$("audit").hidden) load();
}, EVERY);
load();
