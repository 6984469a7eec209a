// What the server says unasked: notifications, and among them its log messages, which have a list of their own.

import { $, clock, element, pretty } from "../dom.js";
import { colored } from "../render/json.js";

const KEPT = 300;
const RANKS = ["debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"];
const LOOKS = { warning: "warn", error: "bad", critical: "bad", alert: "bad", emergency: "bad", notice: "info", info: "info" };

let counted = () => {};
const counts = { notes: 0, logs: 0, bad: 0 };

/** `count(name, total, look)` is called when a list grows: "notes" or "logs". */
export function connectNotes({ count }) {
  counted = count;
}

function append(list, item, empty) {
  const box = list.parentElement;
  const follows = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
  list.append(item);
  while (list.childElementCount > KEPT) list.firstChild.remove();
  empty.hidden = true;
  if (follows) box.scrollTop = box.scrollHeight;
}

const written = (data) => (typeof data === "string" ? data : (data?.message ?? data?.msg ?? JSON.stringify(data)));

function log({ level = "info", logger, data }) {
  counts.logs += 1;
  if (LOOKS[level] === "bad") counts.bad += 1;
  const now = new Date();
  const head = [element("time", { dateTime: now.toISOString() }, clock(now)), element("span", { className: `badge ${LOOKS[level] ?? ""}` }, level), element("span", { className: "what", dir: "auto" }, logger ? element("span", { className: "soft" }, `${logger} `) : "", String(written(data)))];
  const item = element("li", {}, typeof data === "object" && data !== null ? folded(head, data) : element("div", { className: "log-line" }, ...head));
  item.dataset.rank = RANKS.indexOf(level);
  item.hidden = item.dataset.rank < Number($("log-filter").value);
  append($("logs"), item, $("no-logs"));
  counted("logs", counts.logs, counts.bad ? "bad" : "");
}

/** One line that opens to the whole. */
function folded(head, whole) {
  const details = element("details", {}, element("summary", { className: "log-line" }, ...head));
  details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(element("pre", { tabIndex: 0, "aria-label": "Data", dir: "ltr" }, ...colored(pretty(whole)))));
  return details;
}

/** Take a notification in. */
export function note(method, params) {
  if (method === "notifications/message") log(params ?? {});
  counts.notes += 1;
  const now = new Date();
  const about = params?.uri ?? params?.message ?? params?.reason ?? "";
  const head = [element("time", { dateTime: now.toISOString() }, clock(now)), element("span", { className: "what", dir: "auto" }, method.replace("notifications/", ""), element("span", { className: "soft" }, about && typeof about === "string" ? ` ${about}` : ""))];
  append($("notes"), element("li", {}, folded(head, params ?? {})), $("no-notes"));
  counted("notes", counts.notes);
}

export function clearNotes() {
  for (const [list, empty] of [["notes", "no-notes"], ["logs", "no-logs"]]) {
    $(list).replaceChildren();
    $(empty).hidden = false;
  }
  Object.assign(counts, { notes: 0, logs: 0, bad: 0 });
  counted("notes", "");
  counted("logs", "");
}

$("log-filter").append(...RANKS.map((level, rank) => element("option", { value: String(rank) }, rank ? `${level} and above` : "all levels")));
$("log-filter").addEventListener("change", () => {
  for (const item of $("logs").children) item.hidden = item.dataset.rank < Number($("log-filter").value);
});
