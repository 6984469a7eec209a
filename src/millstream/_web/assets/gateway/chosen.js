// The selected upstream: its tools with their token cost, its state, and quarantined definitions beside the accepted ones.

import { quoted } from "../connect/clients.js";
import {
  $,
  clock,
  count,
  duration,
  element,
  facts,
  ms,
  pre,
  pretty,
  showContentOrEmpty,
  showText,
  size,
  write
} from "../dom.js";
import { LiveTable, column } from "../dashboard/table.js";
import { fetchJson } from "../shell/connection.js";
import { tabs } from "../shell/controls.js";
import { write as address } from "../inspect/links.js";

/** @type {Record<string, string>} */
const LOOKS = { ready: "good", connecting: "info", degraded: "bad", disabled: "" };

/** @type {Record<string, string>} */
const NAMES = { ready: "Ready", connecting: "Connecting", degraded: "Down", disabled: "Disabled" };

/** Return whether only a user can make it usable, by connecting an account. @param {Json} row */
export const needsAccount = ({ state, needs_account: needs, listed_at: listed }) =>
  needs && (state !== "ready" || !listed);

/** Return the state in a word or two. @param {Json} row */
export const upstreamState = (row) => (needsAccount(row) ? "Needs account" : (NAMES[row.state] ?? row.state));

/** Return the style of a badge with the state. @param {Json} row */
export const upstreamLook = (row) => (needsAccount(row) ? "warn" : (LOOKS[row.state] ?? ""));

/** @param {number} at */
const ago = (at) => (at ? `${duration(Math.max(0, Date.now() / 1_000 - at))} ago` : "never");

/** Return the state, when it began, and how many workers see it. @param {Json} row */
export function stateFacts(row) {
  const { silent = 0, ...seen } = row.workers;
  const all = Object.values(row.workers).reduce((sum, each) => sum + each, 0);
  return [
    `${upstreamState(row)} for ${duration(Math.max(0, Date.now() / 1_000 - row.since))}`,
    all > 1 && `on ${count(seen[row.state] ?? 0)} of ${count(all)} workers`,
    silent && `${count(silent)} of them didn't respond`,
    row.failed_reads && `${count(row.failed_reads)} failed attempts to read its lists`
  ]
    .filter(Boolean)
    .join(", ");
}

/** @type {Record<string, string>} */
const KINDS = { tools: "tool", resources: "resource", templates: "template", prompts: "prompt" };

const parts = tabs(
  $("parts"),
  [
    { id: "tools", title: "Tools", panel: "part-tools" },
    { id: "calls", title: "Recent calls", panel: "part-calls" },
    { id: "facts", title: "State", panel: "part-facts" },
    { id: "quarantine", title: "Quarantined", panel: "part-quarantine" }
  ],
  () => refresh()
);

/** @type {Set<string>} names of the tools of the selected upstream */
let names = new Set();
const recent = new LiveTable($("recent"), {
  name: "Recent calls",
  sort: "at",
  empty: ["No recent calls", "The newest calls of its tools are listed here."],
  key: ({ at, name, caller }) => `${at} ${name} ${caller}`,
  columns: [
    column("at", "When", ({ at }) => clock(new Date(at * 1_000)), { narrow: true, down: true }),
    column("name", "Tool", undefined, { head: true, says: ({ name }) => name }),
    column("caller", "Caller", ({ caller, client }) => caller || client || "–", { says: ({ client }) => client }),
    column("error", "Error", ({ error, outcome }) => error || outcome.replaceAll("_", " ") || "–", {
      wide: true,
      says: ({ error }) => error,
      raised: ({ by_server: failed }) => failed
    })
  ]
});

async function loadCalls() {
  if ($("part-calls").hidden) return;
  const found = await fetchJson("dashboard/calls", "its recent calls");
  if (found) recent.show(found.calls.filter((/** @type {Json} */ call) => names.has(call.name)));
}

/** @type {Json | null} */
let current = null;
let asked = 0;
let seen = "";

/** Show an upstream, or update its figures. @param {Json} row */
export function open(row) {
  const other = current?.name !== row.name;
  current = row;
  $("chosen").hidden = false;
  write($("chosen-title"), row.name);
  write($("chosen-state"), upstreamState(row));
  $("chosen-state").className = `badge ${upstreamLook(row)}`;
  showText($("chosen-reason"), row.reason);
  $("chosen-accounts").hidden = !row.accounts;
  parts.count("quarantine", row.quarantined || "", "warn");
  parts.count("tools", row.items.tools || "");
  drawFacts(row);
  if (other) {
    seen = "";
    $("tools").replaceChildren();
    $("quarantine").replaceChildren();
    load(row);
  }
}

/** Reload the lists if they have changed. */
export function refresh() {
  if (current) load(current);
  loadCalls();
}

/** @param {Json} row */
const state = (row) => `${row.name} ${row.changed_at} ${row.listed_at} ${row.quarantined}`;

/** @param {Json} row */
async function load(row) {
  const wanted = state(row);
  if (seen === wanted) return;
  const mine = ++asked;
  const found = await fetchJson(`gateway/items?${new URLSearchParams({ upstream: row.name })}`, "its tools");
  if (!found || mine !== asked) return;
  seen = wanted;
  names = new Set(found.tools.map((/** @type {Json} */ each) => each.name));
  showContentOrEmpty($("tools"), $("no-tools"), found.tools.length > 0);
  $("tools").replaceChildren(...found.tools.map(tool));
  showContentOrEmpty($("quarantine"), $("no-quarantine"), found.quarantined.length > 0);
  $("quarantine").replaceChildren(...found.quarantined.map((/** @type {Json} */ each) => quarantined(each, row.name)));
}

/** @param {Json} tool */
function tool({ name, description, tokens }) {
  return element(
    "li",
    {},
    element("code", { dir: "auto" }, name),
    element("span", { className: "soft small", title: "Estimated cost to a model" }, `${count(tokens)} tokens`),
    element("a", { className: "small", href: `inspect${address("tools", name)}`, "aria-label": `Try ${name}` }, "Try"),
    element("p", { className: "soft small about", dir: "auto" }, description)
  );
}

/** @param {Json} row */
function drawFacts(row) {
  const { processes, items, listed } = row;
  /** @param {...string} kinds */
  const shown = (...kinds) => {
    const [here, there] = [items, listed].map((counts) => kinds.reduce((sum, kind) => sum + counts[kind], 0));
    return here === there ? count(here) : `${count(here)} of the ${count(there)} that it lists`;
  };
  const shownFacts = {
    State: stateFacts(row),
    "This server": row.mode,
    "Names begin with": row.prefix ? `${row.prefix}_` : "nothing: they are its own",
    Transport: row.transport || "unknown",
    Revision: row.revision || "unknown",
    Account: row.account || "none",
    "Lists taken": ago(row.listed_at),
    "Lists changed": ago(row.changed_at),
    "Last changed definitions": row.last_change ? `${ago(row.last_change.at)}: ${row.last_change.text}` : "none",
    Tools: shown("tools"),
    Resources: shown("resources", "templates"),
    Prompts: shown("prompts"),
    Connections: count(row.links),
    Sharing: row.sharing || "–",
    "Calls without a usable response": count(row.unanswered),
    "Calls refused without being sent": count(row.refused),
    Duration: `${ms(row.p50_ms)} (p50), ${ms(row.p99_ms)} (p99)`,
    ...(processes && {
      "Shared by": row.separate ? "one caller each" : "all callers of a worker",
      Processes: `${count(processes.running)} of ${count(processes.limit)}${processes.spare ? `, ${count(processes.spare)} spare` : ""}`,
      "Their memory": processes.memory ? size(processes.memory) : "unknown",
      "Connections waiting for one": count(processes.waiting),
      "Started so far": count(processes.started),
      Crashed: count(processes.crashed),
      "Ended while idle": count(processes.ended_idle),
      "Last crash": processes.last_error || "none"
    }),
    "Last error": row.last_error ? `${ago(row.last_error.at)}: ${row.last_error.text}` : "none"
  };
  const text = JSON.stringify(shownFacts);
  if ($("facts").dataset.facts === text) return;
  $("facts").dataset.facts = text;
  $("facts").replaceChildren(...facts(shownFacts));
}

/** @param {Json} item @param {string} upstream */
function quarantined({ kind, name, accepted, offered }, upstream) {
  const [before, now] = [accepted ? pretty(accepted).split("\n") : [], pretty(offered).split("\n")];
  const [old, fresh] = [new Set(before), new Set(now)];
  /** @param {string} title @param {string[]} lines @param {Set<string>} others @param {string} look */
  const block = (title, lines, others, look) =>
    element(
      "div",
      {},
      element("h4", {}, title),
      pre(
        `${title}: ${name}`,
        ...lines.map((line) => element("span", others.has(line) ? "line" : `line ${look}`, line))
      )
    );
  return element(
    "article",
    { className: accepted ? "quarantined" : "quarantined alone", "aria-label": name },
    element("h3", { dir: "auto" }, `${KINDS[kind] ?? kind} ${name}`),
    accepted
      ? block("Accepted", before, fresh, "removed")
      : element("p", "soft small", "Only a digest of the accepted definition is kept."),
    block("Offered now", now, accepted ? old : fresh, "added"),
    element(
      "p",
      "soft small",
      "To accept it, run ",
      element("code", { dir: "ltr" }, `millstream gateway accept FILE ${quoted(upstream)} ${quoted(name)}`)
    )
  );
}
