// What a page asks for beside its stream: JSON, or a sentence above the page that says why there is none.

import { settled, trouble } from "./connection.js";

const again = () => location.reload();

/** Why a reply has no figures, what to do about it, and what a button does about it. */
const WHY = {
  401: (what) => [`You're signed out, so ${what} can't be shown. Sign in again.`, again, "Sign in"],
  403: (what) => [`You may not see ${what}. Sign in with an account that may, or ask whoever runs this server.`, again, "Reload"],
  404: (what) => [`This server doesn't have ${what} any more. Reload the page.`, again, "Reload"],
};

/**
 * The JSON at a path; null where there is none, and then the page says why.
 *
 * @param {string} path of this server
 * @param {string} what it is, as a part of a sentence: "the recent calls"
 */
export async function ask(path, what) {
  try {
    const response = await fetch(path, { cache: "no-store" });
    if (response.ok) {
      const found = await response.json();
      settled(what);
      return found;
    }
    const [reason, now, does] = WHY[response.status]?.(what) ?? [`The server couldn't give ${what} (${response.status}). This page tries again. The server's log may say why.`, null, ""];
    trouble(what, reason, now, does);
  } catch {
    // Nobody answers. The stream of the page says so, and this is asked again when it's back.
  }
  return null;
}
