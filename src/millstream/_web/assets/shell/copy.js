// Copying to the clipboard, and the button for it.

import { element, icon, makeButton, swap } from "../dom.js";
import { toast } from "./toasts.js";

const DONE_MS = 1_500;

/** Copy by selecting the text, because the Clipboard API needs a secure context. */
function copyBySelection(text) {
  const area = element("textarea", { className: "visually-hidden", value: text, "aria-hidden": "true" });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser blocked access to the clipboard.");
}

/** Copy a text and show a toast. Returns whether it succeeded. */
export async function copy(text, message = "Copied.") {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
  } catch (error) {
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
  const button = makeButton(
    { className: "quiet small square copy", title: name, "aria-label": name },
    async (event) => {
      event.stopPropagation();
      if (!(await copy(read()))) return;
      swap(shown, "check");
      setTimeout(() => swap(shown, "copy"), DONE_MS);
    },
    shown
  );
  return button;
}

/** Add a copy button to the corner of a block. */
export const copyable = (block, name, read = () => block.textContent) =>
  element("div", "with-copy", block, copyButton(read, name));
