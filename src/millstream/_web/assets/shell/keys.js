// Keyboard shortcuts: one table for what they do and for the list that `?` shows. A shortcut is a key or two keys in
// turn ("g d"), and never fires while somebody types. "mod" stands for Ctrl, and for ⌘ on a Mac.

import { element } from "../dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const NAMES = { mod: MAC ? "⌘" : "Ctrl", arrowup: "↑", arrowdown: "↓", enter: "Enter", escape: "Esc" };
const CHORD_MS = 1_000;

/** @type {Map<string, {title: string, run: (() => void) | null}>} */
const known = new Map();
let first = "";
let forget = 0;

/** The keys of a shortcut as a person reads them. */
export const keycaps = (keys) => keys.split(/[ +]/).map((key) => element("kbd", {}, NAMES[key] ?? (key.length === 1 && keys.includes("+") ? key.toUpperCase() : key)));

/**
 * Bind keys, replacing what they did before.
 *
 * @param {string} keys "?", "g d" or "mod+k"
 * @param {string} title what it does, for the list
 * @param {(() => void) | null} run null where something else listens and the list should name it
 */
export function shortcut(keys, title, run) {
  known.set(keys, { title, run });
}

/** Whether what has the focus takes letters. */
const typing = (node) => node.isContentEditable || node.matches?.("textarea, select, input:not([type=checkbox], [type=radio], [type=button])");

function pressed(event) {
  if (event.defaultPrevented || event.isComposing) return;
  const mod = (MAC ? event.metaKey : event.ctrlKey) && !event.altKey;
  const key = event.key.toLowerCase();
  if (!mod && (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || document.querySelector("dialog[open]"))) return;
  const keys = mod ? `mod+${key}` : [first, key].filter(Boolean).join(" ");
  clearTimeout(forget);
  first = "";
  const found = known.get(keys) ?? known.get(key);
  if (found?.run) {
    event.preventDefault();
    found.run();
  } else if (!mod && [...known.keys()].some((each) => each.startsWith(`${key} `))) {
    first = key;
    forget = setTimeout(() => (first = ""), CHORD_MS);
  }
}

addEventListener("keydown", pressed);

/** Show every shortcut. */
export function showKeys() {
  const rows = [...known].map(([keys, { title }]) => element("div", {}, element("dt", {}, title), element("dd", {}, ...keycaps(keys))));
  const close = element("button", { type: "submit" }, "Close");
  const dialog = element(
    "dialog", { "aria-labelledby": "keys-title", id: "keys" },
    element("form", { method: "dialog", className: "stack" }, element("h2", { id: "keys-title" }, "Keyboard shortcuts"), element("dl", { className: "keys" }, ...rows), element("div", { className: "row end" }, close)),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
