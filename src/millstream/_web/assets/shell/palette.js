// Keyboard shortcuts, and the command palette.

import { $, element, icon, openDialog, textInput } from "../dom.js";

// Keyboard shortcuts, and the list that `?` shows. A shortcut is a key or two keys in sequence ("g d"), and is disabled
// in text fields. "mod" is Ctrl, or ⌘ on a Mac.

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
/** @type {Record<string, string>} */
const NAMES = { mod: MAC ? "⌘" : "Ctrl", arrowup: "↑", arrowdown: "↓", enter: "Enter", escape: "Esc" };
const CHORD_MS = 1_000;

/** @type {Map<string, {title: string, run: (() => void) | null}>} */
const shortcuts = new Map();
let firstKey = "";
let chordTimer = 0;

/** Return a `<kbd>` for each key of a shortcut. @param {string} keys */
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

/** Whether a node accepts text input. @param {HTMLElement} node */
const isTextInput = (node) =>
  node.isContentEditable || node.matches?.("textarea, select, input:not([type=checkbox], [type=radio], [type=button])");

/** @param {KeyboardEvent} event */
function onKeyDown(event) {
  if (event.defaultPrevented || event.isComposing) return;
  const mod = (MAC ? event.metaKey : event.ctrlKey) && !event.altKey;
  const key = event.key.toLowerCase();
  if (
    !mod &&
    (event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      isTextInput(/** @type {HTMLElement} */ (event.target)) ||
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

// The command palette (Ctrl-K, ⌘K): finds commands by a few letters of their names.

const MAX_SHOWN = 60;

/** @typedef {{title: string, group?: string, hint?: string, icon?: string, keys?: string, run: () => void}} Command */

/** @type {Array<() => Command[]>} */
const sources = [];

/**
 * Register commands above earlier ones. The source is called each time the palette opens, so commands can depend on the
 * state of the page.
 *
 * @param {() => Command[]} source
 */
export const commands = (source) => sources.unshift(source);

/**
 * Return the rank of a match, lower is better; null if the text doesn't match.
 *
 * @param {string} text
 * @param {string} typed
 */
export function rankMatch(text, typed) {
  const where = text.toLowerCase();
  const wanted = typed.toLowerCase().trim();
  const at = where.indexOf(wanted);
  if (at >= 0) return at === 0 ? 0 : /[^a-z0-9]/.test(where[at - 1]) ? 1 : 2;
  const words = wanted.split(/\s+/);
  if (words.length > 1) return words.every((word) => where.includes(word)) ? 3 : null;
  let from = 0;
  let spread = 0;
  for (const letter of wanted) {
    const found = where.indexOf(letter, from);
    if (found < 0) return null;
    spread += found - from;
    from = found + 1;
  }
  return 4 + spread / where.length;
}

/** @param {string} typed */
function matchingCommands(typed) {
  const all = sources.flatMap((source) => source());
  if (!typed.trim()) return all.slice(0, MAX_SHOWN);
  return all
    .map((command) => ({
      command,
      rank: rankMatch(command.title, typed) ?? (rankMatch(command.hint ?? "", typed) ?? 9) + 5
    }))
    .filter(({ rank }) => rank < 9)
    .sort((one, other) => one.rank - other.rank)
    .slice(0, MAX_SHOWN)
    .map(({ command }) => command);
}

/** Open the palette with an initial query. */
export function openPalette(typed = "") {
  /** @type {HTMLDialogElement} */
  const before = $("palette");
  if (before?.open) return;
  before?.remove(); // its `close` event is still pending
  const input = textInput({
    type: "text",
    role: "combobox",
    value: typed,
    placeholder: "What do you want to do?",
    "aria-label": "Command",
    "aria-expanded": "true",
    "aria-controls": "palette-options",
    "aria-autocomplete": "list"
  });
  const options = element("div", {
    className: "options",
    id: "palette-options",
    role: "listbox",
    "aria-label": "Commands",
    tabIndex: -1
  });
  const none = element("p", { className: "none", role: "status", hidden: true }, "No matches. Try fewer letters.");
  const dialog = openDialog(
    { className: "palette", id: "palette", "aria-label": "Command palette" },
    input,
    options,
    none
  );
  /** @type {Command[]} */
  let shown = [];
  let at = 0;

  /** @param {number} index */
  const mark = (index) => {
    at = shown.length ? (index + shown.length) % shown.length : 0;
    for (const option of options.querySelectorAll("[role=option]"))
      option.ariaSelected = String(option.id === `command-${at}`);
    const active = document.getElementById(`command-${at}`);
    input.setAttribute("aria-activedescendant", active?.id ?? "");
    active?.scrollIntoView({ block: "nearest" });
  };
  /** @param {number} index */
  const choose = (index) => {
    dialog.close();
    shown[index]?.run();
  };
  const draw = () => {
    shown = matchingCommands(input.value);
    options.replaceChildren();
    let group = "";
    shown.forEach((command, index) => {
      if (command.group && command.group !== group && !input.value.trim())
        options.append(element("div", { className: "group", role: "presentation" }, command.group));
      group = command.group ?? group;
      const option = element(
        "div",
        { role: "option", id: `command-${index}` },
        icon(command.icon ?? "next"),
        element("span", "title words", command.title),
        element("span", "hint one-line", command.hint ?? ""),
        ...(command.keys ? keycaps(command.keys) : [])
      );
      option.addEventListener("click", () => choose(index));
      option.addEventListener("pointermove", () => at !== index && mark(index));
      options.append(option);
    });
    options.hidden = shown.length === 0;
    none.hidden = shown.length > 0;
    mark(0);
  };
  /** @type {Record<string, () => void>} */
  const moves = { ArrowDown: () => mark(at + 1), ArrowUp: () => mark(at - 1), Enter: () => choose(at) };
  input.addEventListener("keydown", (event) => {
    if (!moves[event.key] || event.isComposing) return;
    event.preventDefault();
    moves[event.key]();
  });
  input.addEventListener("input", draw);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  draw();
  input.focus();
}
