// The server's health: a verdict with its reasons.

import { $, count, duration, element, figure, ms, write } from "../dom.js";

const LAST = "These are the last figures received.";
/** @type {Record<string, string>} */
const WORDS = { good: "Healthy", warn: "Degraded", bad: "Unhealthy" };
const ORDER = ["good", "warn", "bad"];
const LEAST_CALLS = 10; // the share of fewer calls isn't meaningful
const BLOCKED_MS = { warn: 1_000, bad: 6_000 }; // per minute; a short delay, as at the start, is normal

/** @type {number | null} slow readers disconnected before the last snapshot */
let cutBefore = null;
let cutAt = 0;

/** @param {number} errors @param {number} calls */
const share = (errors, calls) => (calls ? (100 * errors) / calls : 0);

/** Return the reasons, worst first: `[look, sentence]`. @param {Json} snapshot @param {Json | null} past */
export function reasons(snapshot, past) {
  /** @type {Array<[string, string]>} */
  const found = [];
  /** @param {string} look @param {string} text */
  const say = (look, text) => found.push([look, text]);
  const { calls = 0, server_errors: errors = 0 } = past?.total ?? {}; // what callers got wrong isn't the server's state
  const failed = share(errors, calls);
  if (calls >= LEAST_CALLS && failed >= 2)
    say(failed >= 25 ? "bad" : "warn", `The server fails ${figure(failed)}% of the calls.`);
  if (snapshot.store && !snapshot.store.up) say("bad", `The store (${snapshot.store.kind}) doesn't respond.`);
  const { blocked } = snapshot.event_loop_lag_ms;
  if (blocked >= BLOCKED_MS.warn)
    say(
      blocked >= BLOCKED_MS.bad ? "bad" : "warn",
      `The event loop was blocked for ${ms(blocked)} of the last minute.`
    );
  const { open_descriptors: open, max_descriptors: most } = snapshot.process;
  if (open && most && open > 0.8 * most)
    say(open > 0.95 * most ? "bad" : "warn", `${count(open)} of ${count(most)} files are open.`);
  const cut = snapshot.hub?.disconnected?.slow ?? 0;
  if (cutBefore !== null && cut > cutBefore) cutAt = snapshot.at_seconds;
  cutBefore = cut;
  if (cutAt && snapshot.at_seconds - cutAt < 300)
    say("warn", `Slow readers are being disconnected: ${count(cut)} so far.`);
  return found.sort(([one], [other]) => ORDER.indexOf(other) - ORDER.indexOf(one));
}

/** Show that the figures are outdated, because the connection is lost. */
export function drawUnknown() {
  $("verdict").className = "badge";
  write($("verdict"), "Unknown");
  $("reasons").dataset.text = $("reasons").title = LAST;
  $("reasons").replaceChildren(element("li", {}, LAST));
}

/** Show a figure with a smaller unit. @param {HTMLElement} node @param {string} text */
function unit(node, text) {
  if (node.textContent === text) return;
  const [value, name = ""] = text.split(" ");
  node.replaceChildren(value, ...(name ? [element("span", "unit", ` ${name}`)] : []));
}

/** Draw the verdict and the figures. @param {Json} snapshot @param {Json | null} past */
export function drawHealth(snapshot, past) {
  const found = reasons(snapshot, past);
  const look = found[0]?.[0] ?? "good";
  $("verdict").className = `badge ${look}`;
  write($("verdict"), WORDS[look]);
  const text = found.map(([, sentence]) => sentence).join("\n");
  if ($("reasons").dataset.text !== text) {
    $("reasons").dataset.text = text;
    $("reasons").replaceChildren(...found.map(([each, sentence]) => element("li", each, sentence)));
    $("reasons").title = text;
  }
  /** @param {Json[]} rows */
  const sum = (rows) => rows.reduce((total, row) => total + row.count, 0);
  const total = past?.total;
  const rate = past?.all.rate.at(-1) ?? null;
  write($("rate"), rate === null ? "–" : figure(rate));
  const kinds = { errors: total?.server_errors, "client-errors": total && total.errors - total.server_errors };
  for (const [id, errors] of Object.entries(kinds)) {
    write($(id), total ? count(errors) : "–");
    write($(`${id}-share`), errors ? `${figure(share(errors, total.calls))}%` : "");
    $(id).classList.toggle("raised", id === "errors" && errors > 0);
  }
  unit($("p99"), ms(total?.p99_ms));
  write($("session-count"), count(sum(snapshot.sessions)));
  write($("connection-count"), count(sum(snapshot.connections)));
  write($("subscriber-count"), count(snapshot.hub?.subscribers ?? 0));
  write($("uptime"), duration(snapshot.uptime_seconds));
  $("uptime").title = `Since ${new Date(snapshot.workers[0].since * 1_000).toLocaleString()}`;
  write($("calls"), count(snapshot.calls));
}
