// Copying to the clipboard, and the button for it.

import { element } from "../dom.js";
import { icon, swap } from "./icons.js";
import { toast } from "./toasts.js";

const DONE_MS = 1_500;

/** Without a secure context there is no clipboard to write to; a selection can still be copied. */
function bySelection(text) {
  const area = element("textarea", { className: "visually-hidden", value: text, "aria-hidden": "true" });
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("The browser didn't allow it.");
}

/** Put a text into the clipboard, and say so. Gives whether it is there. */
export async function copy(text, what = "Copied.") {
  try {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else bySelection(text);
  } catch (error) {
    toast(`This couldn't be copied. ${error.message}`, "bad");
    return false;
  }
  toast(what, "good");
  return true;
}

/**
 * A small button that copies.
 *
 * @param {() => string} read gives the text when the button is pressed
 * @param {string} name what the button does, for who doesn't see the icon
 */
export function copyButton(read, name = "Copy") {
  const shown = icon("copy");
  const button = element("button", { type: "button", className: "quiet small square copy", title: name, "aria-label": name }, shown);
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    if (!(await copy(read()))) return;
    swap(shown, "check");
    setTimeout(() => swap(shown, "copy"), DONE_MS);
  });
  return button;
}

/** A block with a copy button in its corner. */
export const copyable = (block, name, read = () => block.textContent) =>
  element("div", { className: "with-copy" }, block, copyButton(read, name));
