// The messages as they went over the wire, newest last, each to be opened.

import { $, clock, element, figure, pretty } from "./dom.js";

const KEPT = 300;
const asked = new Map(); // "true 3" -> method and moment of the request with id 3 that went out

/** What a message is, and for an answer how long it took. */
function title(out, message) {
  if (message.method) {
    if (message.id !== undefined) asked.set(`${out} ${message.id}`, { method: message.method, at: performance.now() });
    const about = message.params?.name ?? message.params?.uri ?? message.params?.ref?.name ?? "";
    return { what: [message.method, about].filter(Boolean).join(" ") };
  }
  const question = asked.get(`${!out} ${message.id}`);
  asked.delete(`${!out} ${message.id}`);
  const method = question?.method ?? `request ${message.id}`;
  const took = question && `${figure(performance.now() - question.at)} ms`;
  if (message.error) return { what: `error ${message.error.code} for ${method}`, took };
  return { what: message.result?.resultType === "input_required" ? `questions for ${method}` : `result of ${method}`, took };
}

/** Show one message. `note` tells how it travelled, where that is not plain. */
export function record(out, message, note) {
  const { what, took } = title(out, message);
  const list = $("traffic");
  const follows = list.parentElement.scrollHeight - list.parentElement.scrollTop - list.parentElement.clientHeight < 60;
  const now = new Date();
  const summary = element(
    "summary", {},
    element("span", { className: "way", "aria-hidden": "true" }, out ? "↑" : "↓"),
    element("span", { className: "what" }, element("span", { className: "visually-hidden" }, out ? "sent " : "received "), what),
    element("time", { dateTime: now.toISOString() }, took ?? clock(now)),
  );
  const details = element("details", {}, summary);
  // Most are never opened: a message is written out when it is.
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector("pre")) details.append(element("pre", { tabIndex: 0, "aria-label": "Message" }, pretty(message)));
  });
  if (note) summary.title = note;
  list.append(element("li", { className: `${out ? "out" : "in"}${message.error ? " failed" : ""}` }, details));
  if (list.childElementCount > KEPT) list.firstChild.remove();
  count();
  if (follows) list.parentElement.scrollTop = list.parentElement.scrollHeight;
}

function count() {
  $("traffic-count").textContent = $("traffic").childElementCount;
  $("no-traffic").hidden = $("traffic").childElementCount > 0;
}

$("clear").addEventListener("click", () => {
  $("traffic").replaceChildren();
  count();
});
