// The gateway: all upstreams with their state and figures, polled while the page is visible, and the selected upstream
// with its tools and quarantined definitions.

import { $, count, duration, hashParameters, ms, reveal, size, write } from "../dom.js";
import { LiveTable, cellBadge, cellButton, number } from "../dashboard/table.js";
import { fetchJson, showLost, showReconnected } from "../shell/connection.js";
import { commands, shortcut } from "../shell/palette.js";
import { LOOKS, open, refresh, upstreamState } from "./chosen.js";

const EVERY_MS = 2_000;

/** @type {Json[]} */
let upstreams = [];

/** @param {Json} row */
const running = ({ processes }) => processes?.running ?? null;

const table = new LiveTable($("upstreams"), {
  name: "Upstreams",
  sort: "state",
  search: $("upstream-filter"),
  empty: ["No upstreams", "This server has none."],
  key: ({ name }) => name,
  words: ({ name, prefix, state, reason }) => `${name} ${prefix} ${state} ${reason}`,
  columns: [
    {
      id: "name",
      title: "Name",
      head: true,
      wide: true,
      sort: ({ name }) => name,
      fill: (cell, row) => {
        const button = cellButton(cell, row, row.name, choose);
        button.ariaPressed = String(row.name === chosen());
        button.title = row.name;
      }
    },
    {
      id: "state",
      title: "State",
      narrow: true,
      hint: "Problems first",
      down: true,
      sort: ({ state, quarantined, unanswered }) => [
        ["ready", "disabled", "connecting", "degraded"].indexOf(state),
        quarantined,
        unanswered
      ],
      fill: (cell, row) => {
        cellBadge(cell, upstreamState(row), LOOKS[row.state] ?? "");
        cell.title = row.reason;
      }
    },
    number("calls", "Calls"),
    number("unanswered", "Failed", (row) => count(row.unanswered + row.refused), {
      hint: "Calls without a usable response, or refused without being sent",
      sort: (row) => row.unanswered + row.refused,
      says: (row) =>
        `${count(row.unanswered)} without a usable response, ${count(row.refused)} refused without being sent`,
      raised: (row) => row.unanswered + row.refused > 0
    }),
    number("p50_ms", "p50", (row) => ms(row.p50_ms)),
    number("p99_ms", "p99", (row) => ms(row.p99_ms)),
    number(
      "processes",
      "Processes",
      (row) => (row.processes ? `${count(row.processes.running)} of ${count(row.processes.limit)}` : "–"),
      { sort: running, narrow: true }
    ),
    number("tools", "Tools", ({ items }) => count(items.tools), { sort: ({ items }) => items.tools }),
    number("tokens", "Tokens", undefined, { hint: "Estimated cost of its list of tools to a model" }),
    number(
      "changed_at",
      "Changed",
      (row) => (row.changed_at ? duration(Math.max(0, Date.now() / 1_000 - row.changed_at)) : "–"),
      { hint: "How long ago its lists changed" }
    )
  ]
});

let first = ""; // shown until one is selected: a problem, if there was one

/** @param {string | null} wanted */
const named = (wanted) => upstreams.find(({ name }) => name === wanted);
const chosen = () => named(hashParameters().get("upstream"))?.name ?? first;

/** @param {Json} row */
function choose({ name }) {
  location.hash = `upstream=${encodeURIComponent(name)}`;
}

function drawChosen() {
  const row = named(chosen());
  if (row) open(row);
  table.draw(false);
}

function drawAll() {
  /** @param {(row: Json) => number | null | undefined} read */
  const sum = (read) => upstreams.reduce((total, row) => total + (read(row) ?? 0), 0);
  const down = upstreams.filter(({ state }) => state === "degraded");
  const waiting = upstreams.filter(({ state }) => state === "connecting");
  const held = sum(({ quarantined }) => quarantined);
  const [text, look] = down.length
    ? [`${count(down.length)} down`, "bad"]
    : waiting.length
      ? ["Connecting", "warn"]
      : ["All reachable", "good"];
  write($("verdict"), text);
  $("verdict").className = `badge ${look}`;
  const reasons = [
    down.length &&
      `Down: ${down.map(({ name }) => name).join(", ")}. ${down.length === 1 ? "Calls to it fail" : "Calls to them fail"} at once.`,
    held && `${count(held)} ${held === 1 ? "definition is" : "definitions are"} quarantined.`
  ];
  write($("summary"), reasons.filter(Boolean).join(" "));
  write($("upstream-count"), count(upstreams.length));
  write($("tool-count"), count(sum(({ items }) => items.tools)));
  write($("token-count"), count(sum(({ tokens }) => tokens)));
  write($("call-count"), count(sum(({ calls }) => calls)));
  write($("unanswered"), count(sum((row) => row.unanswered + row.refused)));
  write($("link-count"), count(sum(({ links }) => links)));
  write($("process-count"), upstreams.some(({ processes }) => processes) ? count(sum(running)) : "–");
  write(
    $("process-memory"),
    sum(({ processes }) => processes?.memory) ? size(sum(({ processes }) => processes?.memory)) : "–"
  );
  $("accounts").hidden = !upstreams.some(({ accounts }) => accounts);
  table.show(upstreams);
}

let timer = 0;

async function load() {
  clearTimeout(timer);
  const found = await fetchJson("gateway/upstreams", "the upstreams");
  if (found) {
    showReconnected();
    upstreams = found.upstreams;
    const worst = upstreams.find((row) => row.state === "degraded" || row.quarantined) ?? upstreams[0];
    if (!named(first)) first = worst?.name;
    $("upstreams").style.setProperty("--rows", `${upstreams.length}`);
    write($("server-name"), found.title);
    write($("server-version"), found.version);
    document.title = `${found.title} · Gateway`;
    drawAll();
    drawChosen();
    refresh();
  } else if (!navigator.onLine || !(await answers())) {
    showLost("The server can't be reached. This page continues when it's back.", load);
  }
  if (!document.hidden) timer = setTimeout(load, EVERY_MS);
}

async function answers() {
  try {
    return (await fetch("livez", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

document.addEventListener("visibilitychange", () => document.hidden || load());
addEventListener("hashchange", () => {
  drawChosen();
  if (chosen()) reveal($("chosen")); // below the list on a phone
});
shortcut("/", "Filter the upstreams", () => $("upstream-filter").focus());
commands(() => upstreams.map((row) => ({ title: row.name, group: "Upstreams", run: () => choose(row) })));
load();
