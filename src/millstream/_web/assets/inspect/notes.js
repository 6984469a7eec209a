// Notifications of the server. Log messages are also shown in a separate list.

import { page } from "./host.js";
import { $, clock, element, icon, iconButton, isAtEnd, lazyDetails, pre, pretty } from "../dom.js";
import { colored } from "../render/json.js";
import { parseTraceback, traceback } from "../render/content.js";

const KEPT = 300;
const RANKS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
/** @type {Record<string, string>} */
const LOOKS = {
  warning: "warn",
  error: "bad",
  critical: "bad",
  alert: "bad",
  emergency: "bad",
  notice: "info",
  info: "info"
};

const counts = { notes: 0, logs: 0, bad: 0 };

/** @type {Record<string, Array<() => HTMLElement>>} functions that create the items added since the last frame */
const fresh = { notes: [], logs: [] };

let asked = false;

/**
 * Add the item that `make` creates with the next frame.
 *
 * @param {"notes" | "logs"} list
 * @param {() => HTMLElement} make
 */
function append(list, make) {
  fresh[list].push(make);
  if (fresh[list].length > KEPT) fresh[list].shift();
  if (!asked) requestAnimationFrame(drawNotes);
  asked = true;
}

/** Draw new items of the visible list. Items of other lists wait until their list is opened. */
export function drawNotes() {
  asked = false;
  for (const [name, makes] of Object.entries(fresh)) {
    const list = $(name);
    if (!makes.length || list.closest("[hidden]")) continue;
    fresh[name] = [];
    const box = /** @type {HTMLElement} */ (list.parentElement);
    const follows = isAtEnd(box);
    list.append(...makes.map((make) => make()));
    while (list.childElementCount > KEPT) list.firstElementChild?.remove();
    $(`no-${name}`).hidden = true;
    if (follows) box.scrollTop = box.scrollHeight;
  }
  tell();
}

function tell() {
  page.count("notes", counts.notes);
  page.count("logs", counts.bad || counts.logs, counts.bad ? "bad" : "");
}

/** @param {any} data */
const written = (data) => (typeof data === "string" ? data : (data?.message ?? data?.msg ?? JSON.stringify(data)));

/** Create a summary of a traceback that expands to the full text. @param {string} stack */
function traceOf(stack) {
  const whole = pre("Traceback", stack);
  const found = parseTraceback(stack);
  if (!found) return [whole];
  const name = found.file.split(/[/\\]/).at(-1);
  return [
    element(
      "details",
      "trace",
      element(
        "summary",
        { title: found.file },
        element("code", {}, `${name}:${found.line}`),
        " ",
        element("code", "source", found.code),
        element("span", { className: "raised", dir: "auto" }, found.raised)
      ),
      whole
    )
  ];
}

/** @param {HTMLElement} item */
const isFilteredOut = (item) => Number(item.dataset.rank) < Number($("log-filter").value);

/** @param {Date} now @param {Json} record */
function log(now, { level = "info", logger, data }, stack = "") {
  const head = [
    element("time", { dateTime: now.toISOString() }, clock(now)),
    element("span", `badge ${LOOKS[level] ?? ""}`, level),
    element(
      "span",
      { className: "what", dir: "auto" },
      logger ? element("span", "soft", `${logger} `) : "",
      String(written(data))
    )
  ];
  const trace = stack ? traceOf(stack) : [];
  const item = element(
    "li",
    {},
    typeof data === "object" && data !== null ? folded(head, data) : element("div", "log-line", ...head),
    ...trace
  );
  item.dataset.rank = String(RANKS.indexOf(level));
  item.hidden = isFilteredOut(item);
  return item;
}

/** @param {Date} now @param {string} method @param {Json | undefined} params */
function notification(now, method, params) {
  const about = params?.uri ?? params?.message ?? params?.reason ?? "";
  const head = [
    element("time", { dateTime: now.toISOString() }, clock(now)),
    element(
      "span",
      { className: "what", dir: "auto" },
      method.replace("notifications/", ""),
      element("span", "soft", about && typeof about === "string" ? ` ${about}` : "")
    )
  ];
  return element("li", {}, folded(head, params ?? {}));
}

/** Create a line that expands to the full data. @param {Child[]} head @param {unknown} whole */
const folded = (head, whole) =>
  lazyDetails("", element("summary", "log-line", ...head), () => [pre("Data", ...colored(pretty(whole)))]);

/** Add a notification. @param {string} method @param {Json | undefined} params */
export function note(method, params) {
  const now = new Date();
  if (method === "notifications/message") {
    counts.logs += 1;
    if (LOOKS[params?.level] === "bad") counts.bad += 1;
    append("logs", () => log(now, params ?? {}));
  }
  counts.notes += 1;
  append("notes", () => notification(now, method, params));
}

/** Add records of the server's structured log, which it sends in development. @param {Json[]} records */
export function noteLog(records) {
  for (const { ts, level, logger, message, error } of records) {
    counts.logs += 1;
    if (LOOKS[level] === "bad") counts.bad += 1;
    append("logs", () => log(new Date(ts), { level, logger, data: message }, error?.stack));
  }
}

/** Show why the changed program doesn't start, over the page; null removes it. @param {Json | null} failure */
export function showFailure(failure) {
  const before = $("load-failure");
  before?.remove();
  if (!failure) return before && page.state("Connected", "good");
  const { what, why, fix, detail } = failure;
  page.state("Old version", "warn");
  const node = element(
    "section",
    { id: "load-failure", className: "card stack tight", role: "alert" },
    element(
      "div",
      "row",
      element("h2", "grow", what),
      iconButton("Hide", icon("close"), () => node.remove())
    ),
    detail ? traceback(`Traceback (most recent call last):\n${detail}`) : element("p", {}, why),
    element("p", "soft small", `${fix} The version before it keeps running until the program loads again.`.trim())
  );
  document.body.append(node);
}

export function clearNotes() {
  for (const list of Object.keys(fresh)) {
    fresh[list] = [];
    $(list).replaceChildren();
    $(`no-${list}`).hidden = false;
  }
  Object.assign(counts, { notes: 0, logs: 0, bad: 0 });
  tell();
}

$("log-filter").append(
  ...RANKS.map((level, rank) => element("option", { value: String(rank) }, rank ? `${level} and above` : "all levels"))
);
$("log-filter").onchange = () => {
  for (const item of $("logs").querySelectorAll("li")) item.hidden = isFilteredOut(item);
};
