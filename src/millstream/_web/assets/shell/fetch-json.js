// Requests for JSON. Errors are shown in the page's banner.

import { clearTrouble, showTrouble } from "./connection.js";

const reload = () => location.reload();

/** By status: the message, the action of the button, and its label. */
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
