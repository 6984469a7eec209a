// Keyboard shortcuts, and the list that `?` shows. A shortcut is a key or two keys in sequence ("g d"), and is disabled
// in text fields. "mod" is Ctrl, or ⌘ on a Mac.

import { element, openDialog } from "../dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const NAMES = { mod: MAC ? "⌘" : "Ctrl", arrowup: "↑", arrowdown: "↓", enter: "Enter", escape: "Esc" };
const CHORD_MS = 1_000;

/** @type {Map<string, {title: string, run: (() => void) | null}>} */
const shortcuts = new Map();
let firstKey = "";
let chordTimer = 0;

/** Return a `<kbd>` for each key of a shortcut. */
export const keycaps = (keys) =>
  keys
    .split(/[ +]/)
    .map((key) => element("kbd", {}, NAMES[key] ?? (key.length === 1 && keys.includes("+") ? key.toUpperCase() : key)));

/**
 * Bind a shortcut, replacing an earlier one with the same keys.
 *
 * @param {string} keys "?", "g d" or "mod+k"
 * @param {string} title description for the list
 * @param {(() => void) | null} run null to only list a shortcut that's handled elsewhere
 */
export function shortcut(keys, title, run) {
  shortcuts.set(keys, { title, run });
}

/** Whether a node accepts text input. */
const isTextInput = (node) =>
  node.isContentEditable || node.matches?.("textarea, select, input:not([type=checkbox], [type=radio], [type=button])");

function onKeyDown(event) {
  if (event.defaultPrevented || event.isComposing) return;
  const mod = (MAC ? event.metaKey : event.ctrlKey) && !event.altKey;
  const key = event.key.toLowerCase();
  if (
    !mod &&
    (event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      isTextInput(event.target) ||
      document.querySelector("dialog[open]"))
  )
    return;
  const keys = mod ? `mod+${key}` : [firstKey, key].filter(Boolean).join(" ");
  clearTimeout(chordTimer);
  firstKey = "";
  const found = shortcuts.get(keys) ?? shortcuts.get(key);
  if (found?.run) {
    event.preventDefault();
    found.run();
  } else if (!mod && [...shortcuts.keys()].some((each) => each.startsWith(`${key} `))) {
    firstKey = key;
    chordTimer = setTimeout(() => (firstKey = ""), CHORD_MS);
  }
}

addEventListener("keydown", onKeyDown);

/** Show the list of all shortcuts. */
export function showKeys() {
  const rows = [...shortcuts].map(([keys, { title }]) =>
    element("div", {}, element("dt", {}, title), element("dd", {}, ...keycaps(keys)))
  );
  openDialog(
    { "aria-labelledby": "keys-title", id: "keys" },
    element(
      "form",
      { method: "dialog", className: "stack" },
      element("h2", { id: "keys-title" }, "Keyboard shortcuts"),
      element("dl", "keys", ...rows),
      element("div", "row end", element("button", { type: "submit" }, "Close"))
    )
  );
}
