// Short messages that come and go by themselves, for what a person did and need not look for.

import { element } from "../dom.js";

const SHOWN_MS = 4_000;
const KEPT = 3;

const stack = element("div", { className: "toasts", role: "status" });
document.body.append(stack);

/**
 * Say it for a few seconds.
 *
 * @param {string} text one short sentence
 * @param {"" | "good" | "bad"} look
 */
export function toast(text, look = "") {
  const made = element("div", { className: `toast ${look}` }, text);
  stack.append(made);
  while (stack.childElementCount > KEPT) stack.firstChild.remove();
  setTimeout(() => made.remove(), SHOWN_MS);
}
