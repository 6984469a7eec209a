// Says that the server is gone, above the page, and takes it back when the server answers again. A page that holds a
// stream reports what it sees with `lost` and `back`; a page that holds none asks this to `watch`.

import { element } from "../dom.js";
import { icon } from "./icons.js";
import { toast } from "./toasts.js";

const BEAT_MS = 5_000;

const text = element("p");
const retry = element("button", { type: "button", className: "small" }, "Try now");
const banner = element("div", { className: "banner", role: "alert", id: "banner", hidden: true }, icon("alert"), text, retry);
document.body.append(banner);

let again = null;
retry.addEventListener("click", () => again?.());

/**
 * Show that there is no connection. It may be said again with other words.
 *
 * @param {string} reason a sentence or two: what happened, and what the page does about it
 * @param {(() => void) | null} [now] tries at once; without it there is no button
 * @param {string} [does] what the button says
 */
export function lost(reason, now = null, does = "Try now") {
  if (text.textContent !== reason) text.textContent = reason;
  again = now;
  retry.textContent = does;
  retry.hidden = !now;
  banner.hidden = false;
}

/** The server is there again. */
export function back() {
  if (banner.hidden) return;
  banner.hidden = true;
  toast("Connected again.", "good");
}

/** Ask the server now and then whether it is there, as long as the page is looked at. */
export function watch(ms = BEAT_MS) {
  const look = async () => {
    try {
      const response = await fetch("livez", { cache: "no-store" });
      if (response.ok) back();
    } catch {
      lost("The server can't be reached. This page goes on when it's back.", look);
    }
  };
  setInterval(() => document.visibilityState === "visible" && look(), ms);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && look());
  addEventListener("online", look);
}
