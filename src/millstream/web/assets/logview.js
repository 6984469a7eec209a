// The stream of log lines: kept up to a bound, filtered by words and level, and held back while it is paused.

import { $, clock, either, element } from "./dom.js";

const KEPT = 1_000;
const RANKS = { debug: 10, info: 20, warning: 30, error: 40, critical: 50 };

const lines = [];
let paused = false;
let waiting = 0;

const written = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function shown({ line, text }) {
  const wanted = $("log-filter").value.toLowerCase().split(/\s+/);
  return (RANKS[line.level] ?? 20) >= Number($("log-level").value) && wanted.every((word) => text.includes(word));
}

function draw(line) {
  const { ts, level, logger, message, error, ...fields } = line;
  const when = new Date(ts);
  const item = element("li", { className: level });
  item.append(
    element("time", { dateTime: when.toISOString() }, clock(when)),
    element("span", { className: "level" }, level),
    element("span", { className: "text" }, element("span", { className: "soft" }, `${logger} `), message),
  );
  for (const [name, value] of Object.entries(fields)) {
    item.lastChild.append(" ", element("span", { className: "soft" }, `${name}=${written(value)}`));
  }
  if (error) item.append(element("pre", { tabIndex: 0, "aria-label": "Traceback" }, error.stack));
  return item;
}

/** Draw everything anew: another filter, or the end of a pause. */
function redraw() {
  waiting = 0;
  const list = $("log");
  list.replaceChildren(...lines.filter(shown).map((each) => draw(each.line)));
  list.scrollTop = list.scrollHeight;
  tell();
}

function tell() {
  const list = $("log");
  $("no-log-title").textContent = lines.length ? "No line matches the filter" : "Nothing logged yet";
  either(list, $("no-log"), list.childElementCount > 0);
  const held = paused ? `, paused: ${waiting} new` : "";
  $("log-count").textContent = lines.length ? `${list.childElementCount} of ${lines.length} lines${held}` : "";
}

/** Take new lines in. The view follows the end unless somebody scrolled up. */
export function add(news) {
  const list = $("log");
  const fresh = news.map((line) => ({ line, text: JSON.stringify(line).toLowerCase() }));
  lines.push(...fresh);
  lines.splice(0, lines.length - KEPT);
  if (paused) {
    waiting += fresh.length;
    tell();
    return;
  }
  const follows = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  list.append(...fresh.filter(shown).map((each) => draw(each.line)));
  while (list.childElementCount > KEPT) list.firstChild.remove();
  tell();
  if (follows) list.scrollTop = list.scrollHeight;
}

$("log-filter").addEventListener("input", redraw);
$("log-level").addEventListener("change", redraw);
$("log-pause").addEventListener("click", () => {
  paused = !paused;
  $("log-pause").setAttribute("aria-pressed", String(paused));
  if (paused) tell();
  else redraw();
});
tell();
