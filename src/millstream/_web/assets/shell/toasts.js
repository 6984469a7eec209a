// Short messages that disappear after a few seconds.

import { element } from "../dom.js";

const SHOWN_MS = 4_000;
const MAX_TOASTS = 3;

const stack = element("div", { className: "toasts", role: "status" });
document.body.append(stack);

/**
 * Show a message for a few seconds.
 *
 * @param {string} text one short sentence
 * @param {"" | "good" | "bad"} look
 */
export function toast(text, look = "") {
  const node = element("div", `toast ${look}`, text);
  stack.append(node);
  while (stack.childElementCount > MAX_TOASTS) stack.firstChild.remove();
  setTimeout(() => node.remove(), SHOWN_MS);
}
