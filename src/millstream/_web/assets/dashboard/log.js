// The log: a bounded list of lines, filtered by words and level, that can be paused.

import { $, clock, element, hasWords, isAtEnd, pre, showContentOrEmpty, write } from "../dom.js";

const KEPT = 1_000;
/** @type {Record<string, number>} */
const RANKS = { debug: 10, info: 20, warning: 30, error: 40, critical: 50 };

/** @type {Array<{line: Json, text: string}>} */
const lines = [];
let warnings = 0;
let errors = 0;
let opened = false;
let paused = false;
let waiting = 0;

/** @param {unknown} value */
const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

/** @param {{line: Json, text: string}} entry */
function shown({ line, text }) {
  return (RANKS[line.level] ?? 20) >= Number($("log-level").value) && hasWords(text, $("log-filter").value);
}

/** @param {Json} line */
function draw(line) {
  const { ts, level, logger, message, error, ...fields } = line;
  const when = new Date(ts);
  const text = element("span", { className: "text", dir: "auto" }, element("span", "soft", `${logger} `), message);
  for (const [name, value] of Object.entries(fields)) {
    text.append(" ", element("span", "soft", `${name}=${written(value)}`));
  }
  return element(
    "li",
    level,
    element("time", { dateTime: when.toISOString() }, clock(when)),
    element("span", "level", level),
    text,
    error && pre("Traceback", error.stack)
  );
}

/** Redraw the list after a new filter or a pause. */
function redraw() {
  waiting = 0;
  const list = $("log");
  list.replaceChildren(...lines.filter(shown).map((each) => draw(each.line)));
  tell();
  list.scrollTop = list.scrollHeight; // a hidden list can't scroll
}

/** Show the newest line, and the warnings and errors since the drawer was last open. */
function tellClosed() {
  const last = lines.at(-1)?.line;
  write($("log-last"), last && !opened ? `${clock(new Date(last.ts))} ${last.level} ${last.message}` : "");
  write($("log-warnings"), warnings ? `${warnings} ${warnings === 1 ? "warning" : "warnings"}` : "");
  write($("log-errors"), errors ? `${errors} ${errors === 1 ? "error" : "errors"}` : "");
}

/** Open or close the drawer. */
export function toggleLog() {
  opened = !opened;
  $("log-body").hidden = !opened;
  $("drawer").classList.toggle("open", opened);
  $("log-toggle").ariaExpanded = String(opened);
  warnings = errors = 0;
  tellClosed();
  if (opened) redraw();
}

function tell() {
  const list = $("log");
  $("no-log-title").textContent = lines.length ? "No line matches the filter" : "Nothing logged yet";
  showContentOrEmpty(list, $("no-log"), list.childElementCount > 0);
  const held = paused ? `, paused: ${waiting} new` : "";
  $("log-count").textContent = lines.length
    ? `${list.childElementCount} of ${lines.length} ${lines.length === 1 ? "line" : "lines"}${held}`
    : "";
}

/** Add lines. The list stays scrolled to the end, unless the user has scrolled up. @param {Json[]} news */
export function add(news) {
  const list = $("log");
  const fresh = news.map((line) => ({ line, text: JSON.stringify(line) }));
  lines.push(...fresh);
  lines.splice(0, lines.length - KEPT);
  for (const { level } of news) {
    if (opened) break;
    if (RANKS[level] >= 40) errors += 1;
    else if (RANKS[level] === 30) warnings += 1;
  }
  tellClosed();
  if (!opened) return;
  if (paused) {
    waiting += fresh.length;
    tell();
    return;
  }
  const follows = isAtEnd(list);
  list.append(...fresh.filter(shown).map((each) => draw(each.line)));
  while (list.childElementCount > KEPT) list.firstElementChild?.remove();
  tell();
  if (follows) list.scrollTop = list.scrollHeight;
}

$("log-toggle").onclick = toggleLog;
$("log-filter").oninput = redraw;
$("log-level").onchange = redraw;
$("log-pause").onclick = () => {
  paused = !paused;
  $("log-pause").setAttribute("aria-pressed", String(paused));
  if (paused) tell();
  else redraw();
};
tell();
