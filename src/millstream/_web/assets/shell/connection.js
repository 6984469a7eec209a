// The connection to the server: the banner for a lost one, and requests for JSON.

import { element, icon, makeButton } from "../dom.js";
import { toast } from "./controls.js";

// The banner for a lost connection and for data that can't be loaded. A page with a stream reports its state with
// `showLost` and `showReconnected`; a page without one calls `watchConnection`.

const CHECK_MS = 5_000;

const text = element("p");
const retry = makeButton("small", () => currentAction?.(), "Try now");
const banner = element(
  "div",
  { className: "banner", role: "alert", id: "banner", hidden: true },
  icon("alert"),
  text,
  retry
);
document.body.append(banner);

const CONNECTION = "";
/** @type {Map<string, {reason: string, action: (() => void) | null, label: string}>} what is missing, oldest first */
const troubles = new Map();

/** @type {(() => void) | null} */
let currentAction = null;

function draw() {
  const worst = troubles.get(CONNECTION) ?? troubles.values().next().value;
  banner.hidden = !worst;
  if (!worst) return;
  if (text.textContent !== worst.reason) text.textContent = worst.reason;
  currentAction = worst.action;
  retry.textContent = worst.label;
  retry.hidden = !worst.action;
}

/**
 * Show that the connection is lost, or update the reason.
 *
 * @param {string} reason a sentence or two: what happened, and what the page does about it
 * @param {(() => void) | null} [action] runs when the button is pressed; null hides the button
 * @param {string} [label] label of the button
 */
export const showLost = (reason, action = null, label = "Try now") => showTrouble(CONNECTION, reason, action, label);

/** Hide the banner for a lost connection. */
export function showReconnected() {
  if (clearTrouble(CONNECTION)) toast("Connected again.", "good");
}

/**
 * Show that `what` can't be loaded. Parameters as for `showLost`, which takes precedence.
 *
 * @param {string} what
 * @param {string} reason
 * @param {(() => void) | null} [action]
 */
export function showTrouble(what, reason, action = null, label = "Try now") {
  troubles.set(what, { reason, action, label });
  draw();
}

/** Remove an entry. Returns whether there was one. @param {string} what */
export function clearTrouble(what) {
  const existed = troubles.delete(what);
  if (existed) draw();
  return existed;
}

/** @typedef {import("../hub.js").State} State */

const STATE_NAMES = { connecting: "Connecting…", open: "Live", waiting: "Reconnecting…", offline: "Offline" };

/**
 * Show the state of a feed in a badge, and the reason for a lost connection in the banner. `retry` reconnects.
 *
 * @param {HTMLElement} badge
 * @param {State} state
 * @param {(() => void) | null} [retry]
 */
export function showState(badge, { state, reason, status = 0 }, retry = null) {
  badge.textContent = STATE_NAMES[state];
  badge.className = `badge state ${{ open: "good", connecting: "", waiting: "warn", offline: "bad" }[state]}`;
  if (state === "open") showReconnected();
  else if (status === 401)
    showLost("You're signed out. Sign in again to continue.", () => location.reload(), "Sign in");
  else if (reason)
    showLost(
      `${reason} ${state === "waiting" ? "This page continues when it's back." : "This page continues when you're back online."}`,
      state === "waiting" ? retry : null
    );
}

/** Check periodically whether the server responds while the page is visible. */
export function watchConnection(ms = CHECK_MS) {
  const check = async () => {
    try {
      const response = await fetch("livez", { cache: "no-store" });
      if (response.ok) showReconnected();
    } catch {
      showLost("The server can't be reached. This page continues when it's back.", check);
    }
  };
  setInterval(() => document.visibilityState === "visible" && check(), ms);
  document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && check());
  addEventListener("online", check);
}

// Requests for JSON. Errors are shown in the page's banner.

const reload = () => location.reload();

/** @type {Record<number, (what: string) => [string, () => void, string]>} by status: message, action, and its label */
const MESSAGES = {
  401: (what) => [`You're signed out, so ${what} can't be shown. Sign in again.`, reload, "Sign in"],
  403: (what) => [
    `You don't have access to ${what}. Sign in with another account, or ask this server's operator for access.`,
    reload,
    "Reload"
  ],
  404: (what) => [`This server no longer has ${what}. Reload the page.`, reload, "Reload"]
};

/**
 * Return the JSON at a path, or show an error and return null.
 *
 * @param {string} path of this server
 * @param {string} what the data as a noun phrase: "the recent calls"
 */
export async function fetchJson(path, what) {
  try {
    const response = await fetch(path, { cache: "no-store" });
    if (response.ok) {
      const data = await response.json();
      clearTrouble(what);
      return data;
    }
    const [reason, action, label] = MESSAGES[response.status]?.(what) ?? [
      `The server failed to return ${what} (status ${response.status}). This page tries again. The server's log may contain the cause.`,
      null,
      ""
    ];
    showTrouble(what, reason, action, label);
  } catch {
    // The page's stream reports a lost connection, and the page repeats this request once it's back.
  }
  return null;
}
