// Says that the server is gone, above the page, and takes it back when the server answers again. A page that holds a
// stream reports what it sees with `lost` and `back`; a page that holds none asks this to `watch`. What else a page
// can't have of a server that is there is said in the same place.

import { element } from "../dom.js";
import { icon } from "./icons.js";
import { toast } from "./toasts.js";

const BEAT_MS = 5_000;

const text = element("p");
const retry = element("button", { type: "button", className: "small" }, "Try now");
const banner = element("div", { className: "banner", role: "alert", id: "banner", hidden: true }, icon("alert"), text, retry);
document.body.append(banner);

const CONNECTION = "";
const troubles = new Map(); // what is missing -> why, in the order in which it went; the connection comes first

let again = null;
retry.addEventListener("click", () => again?.());

function show() {
  const worst = troubles.get(CONNECTION) ?? troubles.values().next().value;
  banner.hidden = !worst;
  if (!worst) return;
  if (text.textContent !== worst.reason) text.textContent = worst.reason;
  again = worst.now;
  retry.textContent = worst.does;
  retry.hidden = !worst.now;
}

/**
 * Show that there is no connection. It may be said again with other words.
 *
 * @param {string} reason a sentence or two: what happened, and what the page does about it
 * @param {(() => void) | null} [now] tries at once; without it there is no button
 * @param {string} [does] what the button says
 */
export const lost = (reason, now = null, does = "Try now") => trouble(CONNECTION, reason, now, does);

/** The server is there again. */
export function back() {
  if (settled(CONNECTION)) toast("Connected again.", "good");
}

/** Show that the server is there, and something can't be had of it; otherwise as `lost`. */
export function trouble(what, reason, now = null, does = "Try now") {
  troubles.set(what, { reason, now, does });
  show();
}

/** It can be had again; whether it couldn't. */
export function settled(what) {
  const before = troubles.delete(what);
  if (before) show();
  return before;
}

/** Ask the server now and then whether it is there, as long as the page is looked at. */
export function watch(ms = BEAT_MS) {
  const look = async () => {
    try {
      const response = await fetch("livez", { cache: "no-store" });
      if (response.ok) back();
    } catch {
      lost("The server can't be reached. This page continues when it's back.", look);
    }
  };
  setInterval(() => document.visibilityState === "visible" && look(), ms);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());
  addEventListener("online", look);
}
