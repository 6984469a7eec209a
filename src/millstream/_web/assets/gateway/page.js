// The gateway: all upstreams with their state and figures, polled while the page is visible, and the selected upstream
// with its tools and quarantined definitions.

import { $, clock, count, duration, hashParameters, ms, reveal, size, write } from "../dom.js";
import { LineChart } from "../dashboard/charts.js";
import { LiveTable, cellBadge, cellButton, column, number } from "../dashboard/table.js";
import { fetchJson, showLost, showReconnected } from "../shell/connection.js";
import { commands, shortcut } from "../shell/palette.js";
import { needsAccount, open, refresh, stateFacts, upstreamLook, upstreamState } from "./chosen.js";

const EVERY_MS = 2_000;

/** @type {Json[]} */
let upstreams = [];
/** @type {Json} */
let configuration = {};
/** @type {string[]} names of the event types */
let events = [];
/** @type {number | null} calls that wait for another person's approval */
let approvals = null;

/** @param {number} at */
const ago = (at) => `${duration(Math.max(0, Date.now() / 1_000 - at))} ago`;
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
        cellBadge(cell, upstreamState(row), upstreamLook(row));
        cell.title = [stateFacts(row), row.reason].filter(Boolean).join(": ");
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
    number("p99_ms", "p99", (row) => ms(row.p99_ms)),
    number(
      "processes",
      "Processes",
      (row) => (row.processes ? `${count(row.processes.running)} of ${count(row.processes.limit)}` : "–"),
      { sort: running, narrow: true }
    ),
    column(
      "last_error",
      "Last error",
      (row) => (row.last_error ? ago(row.last_error.at) : row.reason && !needsAccount(row) ? "now" : "–"),
      {
        sort: (row) => row.last_error?.at ?? 0,
        says: (row) => row.last_error?.text ?? row.reason,
        raised: (row) => row.state === "degraded"
      }
    ),
    number("tools", "Tools", ({ items }) => count(items.tools), { sort: ({ items }) => items.tools }),
    number("tokens", "Tokens", undefined, { hint: "Estimated cost of its list of tools to a model" })
  ]
});

const sets = new LiveTable($("sets"), {
  name: "Sets",
  sort: "", // as in the file
  down: false,
  empty: ["No sets", "This server has one address."],
  key: ({ name }) => name,
  columns: [
    column("name", "Name", undefined, { head: true }),
    column("path", "Address", undefined, { wide: true }),
    column("needs", "Needs", ({ scopes, groups }) => [...scopes, ...groups].join(", ") || "–", {
      hint: "Scopes and groups that a caller needs"
    }),
    number("tools", "Tools", ({ items }) => count(items.tools), { sort: ({ items }) => items.tools }),
    number("resources", "Resources", ({ items }) => count(items.resources + items.templates), {
      sort: ({ items }) => items.resources + items.templates
    }),
    number("prompts", "Prompts", ({ items }) => count(items.prompts), { sort: ({ items }) => items.prompts })
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
  const people = upstreams.filter(needsAccount);
  const waiting = upstreams.filter((row) => row.state === "connecting" && !people.includes(row));
  const held = sum(({ quarantined }) => quarantined);
  const [text, look] = down.length
    ? [`${count(down.length)} down`, "bad"]
    : waiting.length
      ? ["Connecting", "warn"]
      : people.length
        ? ["Needs an account", "warn"]
        : configuration.refused
          ? ["File refused", "warn"]
          : ["All reachable", "good"];
  write($("verdict"), text);
  $("verdict").className = `badge ${look}`;
  const reasons = [
    down.length &&
      `Down: ${down.map(({ name }) => name).join(", ")}. ${down.length === 1 ? "Calls to it fail" : "Calls to them fail"} at once.`,
    people.length && `Until a user connects an account: ${people.map(({ name }) => name).join(", ")}.`,
    held && `${count(held)} ${held === 1 ? "definition is" : "definitions are"} quarantined.`,
    configuration.refused && `${configuration.refused} Version ${configuration.version} stays in force.`
  ];
  write($("summary"), reasons.filter(Boolean).join(" "));
  write($("upstream-count"), count(upstreams.length));
  write($("config-version"), configuration.version ? count(configuration.version) : "–");
  $("config-version").title = configuration.version ? `${configuration.file}, digest ${configuration.digest}` : "";
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
  write($("event-count"), events.length ? count(events.length) : "–");
  $("event-count").title = events.join(", ");
  write($("approval-count"), approvals === null ? "–" : count(approvals));
  $("accounts").hidden = !upstreams.some(({ accounts }) => accounts);
  $("approvals").hidden = !upstreams.some(({ approvals }) => approvals);
  table.show(upstreams);
}

const SHOWN_SECONDS = 600;
const chart = new LineChart($("rate-chart"), {
  name: "Calls/s",
  series: [
    { name: "All", color: "--accent", fill: true },
    { name: "Failed", color: "--bad", dash: "dashed" }
  ]
});
/** @type {Array<{at: number, calls: number, failed: number}>} counts at each time */
const counts = [];

function drawRates() {
  const last = counts.at(-1);
  const now = { at: Date.now() / 1_000, calls: 0, failed: 0 };
  for (const { calls, unanswered, refused } of upstreams) {
    now.calls += calls + refused;
    now.failed += unanswered + refused;
  }
  if (last && now.calls < last.calls) counts.length = 0; // the server has restarted
  counts.push(now);
  if (counts.length * EVERY_MS > SHOWN_SECONDS * 1_000) counts.shift();
  const points = counts.slice(1);
  /** @param {"calls" | "failed"} name */
  const rates = (name) =>
    points.map((each, place) => (each[name] - counts[place][name]) / (each.at - counts[place].at));
  const seconds = Math.min(SHOWN_SECONDS, Math.max(60, now.at - counts[0].at));
  const since = clock(new Date(counts[0].at * 1_000)).slice(0, 5); // the server keeps no history of upstreams
  chart.rename(`Calls/s since ${since}`, "Calls per second to all upstreams, since this page was opened");
  const axis = { times: points.map(({ at }) => at), until: now.at, seconds, step: EVERY_MS / 1_000 };
  chart.show(axis, [rates("calls"), rates("failed")]);
}

let timer = 0;

async function load() {
  clearTimeout(timer);
  const found = await fetchJson("gateway/upstreams", "the upstreams");
  if (found) {
    showReconnected();
    ({ upstreams, configuration, events, approvals } = found);
    const worst = upstreams.find((row) => row.state === "degraded" || row.quarantined) ?? upstreams[0];
    if (!named(first)) first = worst?.name;
    $("upstreams").style.setProperty("--rows", `${upstreams.length}`);
    $("sets").style.setProperty("--rows", `${found.sets.length}`);
    write($("server-name"), found.title);
    write($("server-version"), found.version);
    document.title = `${found.title} · Gateway`;
    drawAll();
    $("sets-card").hidden = !found.sets.length;
    sets.show(found.sets);
    drawRates();
    drawChosen();
    refresh();
  } else if (!(await answers())) {
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
