// Controls that pages share, and what protects them from a press that was meant for something else.

import { $, element, icon, makeButton, swap, write } from "../dom.js";

// Short messages that disappear after a few seconds.

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
  while (stack.childElementCount > MAX_TOASTS) stack.firstElementChild?.remove();
  setTimeout(() => node.remove(), SHOWN_MS);
}

// Copying to the clipboard, and the button for it.

const DONE_MS = 1_500;

/** Copy by selecting the text, because the Clipboard API needs a secure context. @param {string} text */
function copyBySelection(text) {
  const area = element("textarea", { className: "visually-hidden", value: text, "aria-hidden": "true" });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser blocked access to the clipboard.");
}

/** Copy a text and show a toast. Returns whether it succeeded. @param {string} text */
export async function copy(text, message = "Copied.") {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
  } catch (/** @type {any} */ error) {
    toast(`Copying failed. ${error.message}`, "bad");
    return false;
  }
  toast(message, "good");
  return true;
}

/**
 * Create a small button that copies a text.
 *
 * @param {() => string} read returns the text when the button is pressed
 * @param {string} name accessible name of the button
 */
export function copyButton(read, name = "Copy") {
  const shown = icon("copy");
  return makeButton(
    { className: "quiet small square copy", title: name, "aria-label": name },
    async (event) => {
      event.stopPropagation();
      if (!(await copy(read()))) return;
      swap(shown, "check");
      setTimeout(() => swap(shown, "copy"), DONE_MS);
    },
    shown
  );
}

/** Add a copy button to the corner of a block. @param {HTMLElement} block @param {string} name */
export const copyable = (block, name, read = () => block.textContent) =>
  element("div", "with-copy", block, copyButton(read, name));

// Tabs, by click or arrow keys.

/**
 * Fill a tab list.
 *
 * @param {HTMLElement} list an element with `role="tablist"`
 * @param {Array<{id: string, title: string, panel?: string}>} entries `panel` is the id of the tab's panel; panels of
 *   other tabs are hidden
 * @param {(id: string) => void} onChange
 * @returns {{choose: (id: string, notify?: boolean) => void, count: (id: string, text: string | number, look?: string) => void, hide: (id: string, hidden: boolean) => void, current: () => string}}
 */
export function tabs(list, entries, onChange = () => {}) {
  let current = entries[0].id;
  const panels = new Set(entries.flatMap(({ panel }) => panel ?? []));
  const byId = new Map(
    entries.map(({ id, title, panel }) => {
      const count = element("span", "count");
      const tab = makeButton({ role: "tab", id: `tab-${id}`, "aria-controls": panel }, () => choose(id), title, count);
      return [id, { tab, count, panel }];
    })
  );
  list.replaceChildren(...[...byId.values()].map(({ tab }) => tab));
  list.addEventListener("keydown", (event) => {
    const all = [...byId].filter(([, { tab }]) => !tab.hidden).map(([id]) => id);
    const step =
      ({ ArrowRight: 1, ArrowLeft: -1 }[event.key] ?? 0) * (getComputedStyle(list).direction === "rtl" ? -1 : 1);
    const next =
      event.key === "Home"
        ? all[0]
        : event.key === "End"
          ? all.at(-1)
          : step
            ? all[(all.indexOf(current) + step + all.length) % all.length]
            : null;
    if (!next) return;
    event.preventDefault();
    choose(next);
    byId.get(next)?.tab.focus();
  });

  /** @param {string} id */
  function choose(id, notify = true) {
    const chosen = byId.get(id);
    if (!chosen) return; // an address can name any
    current = id;
    for (const [name, { tab }] of byId) {
      tab.ariaSelected = String(name === id);
      tab.tabIndex = name === id ? 0 : -1;
    }
    const { panel, tab } = chosen;
    for (const each of panels) $(each).hidden = each !== panel;
    if (panel) $(panel).setAttribute("aria-labelledby", tab.id);
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (notify) onChange(id);
  }

  choose(current, false);
  /** @param {string} id @param {string | number} text */
  const count = (id, text, look = "") => {
    const node = byId.get(id)?.count;
    if (!node) return;
    write(node, text);
    node.className = `count ${look}`;
  };
  /** @param {string} id @param {boolean} hidden */
  const hide = (id, hidden) => byId.get(id)?.tab.toggleAttribute("hidden", hidden);
  return { choose, count, hide, current: () => current };
}

// Delays redraws of a list while the pointer is pressed in it, because a click needs the same element at press and
// release.

/** @type {Node | null} */
let pressTarget = null;
/** @type {Map<HTMLElement, () => void>} the newest draw function of each list */
const delayed = new Map();

addEventListener("pointerdown", (event) => (pressTarget = /** @type {Node | null} */ (event.target)), {
  capture: true
});
for (const end of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(end, () => setTimeout(onRelease, 0), { capture: true }); // after the click event
}

function onRelease() {
  pressTarget = null;
  const draws = [...delayed.values()];
  delayed.clear();
  for (const draw of draws) draw();
}

/**
 * Draw the content of `list` now, or when the pointer is released. Only the newest `draw` of a list runs.
 *
 * @param {HTMLElement} list
 * @param {() => void} draw
 */
export function drawWhenReleased(list, draw) {
  if (pressTarget && list.contains(pressTarget)) delayed.set(list, draw);
  else {
    delayed.delete(list);
    draw();
  }
}

// Keeps the buttons of a question disabled until the user can have seen it, so a double click or a key that was meant for
// something else doesn't answer it.

const SEEN_MS = 600;

/** Whether a button is in view, and nothing covers it. @param {Element} button */
function isUncovered(button) {
  const { left, top, width, height } = button.getBoundingClientRect();
  return button.contains(document.elementFromPoint(left + width / 2, top + height / 2));
}

/**
 * Enable the buttons of `node` when they have been in view at the same place for 600 ms, or while the focus is in it.
 *
 * @param {Element} node
 * @param {Array<HTMLButtonElement | HTMLInputElement>} buttons
 * @param {AbortSignal} [signal] ends the watch; removing the node does, too
 */
export function guard(node, buttons, signal) {
  let [since, last, place] = [0, 0, ""];
  /** @param {boolean} disabled */
  const disable = (disabled) => {
    for (const each of buttons) if (each.disabled !== disabled) each.disabled = disabled;
  };
  /** @param {number} now */
  const look = (now) => {
    if (!node.isConnected || !buttons[0].isConnected || signal?.aborted) return;
    const { left, top, width, height } = node.getBoundingClientRect();
    const current = [left, top, width, height].join(" ");
    const moved = current !== place || !buttons.every(isUncovered);
    const paused = now - last > SEEN_MS; // frames stop while the tab is hidden
    if (!place || paused || (moved && !node.contains(document.activeElement))) since = now;
    [place, last] = [current, now];
    disable(now - since < SEEN_MS);
    requestAnimationFrame(look);
  };
  disable(true);
  requestAnimationFrame(look);
}
