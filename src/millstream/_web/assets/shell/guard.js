// Keeps the buttons of a question disabled until the user can have seen it, so a double click or a key that was meant for
// something else doesn't answer it.

const SEEN_MS = 600;

/** Whether a button is in view, and nothing covers it. */
function isUncovered(button) {
  const { left, top, width, height } = button.getBoundingClientRect();
  return button.contains(document.elementFromPoint(left + width / 2, top + height / 2));
}

/** Enable the buttons of `node` whenever they have been in view at the same place for 600 ms, while it's in the document. */
export function guard(node, buttons) {
  let since = 0;
  let last = 0;
  let place = "";
  const disable = (disabled) => buttons.forEach((each) => each.disabled === disabled || (each.disabled = disabled));
  const look = (now) => {
    if (!node.isConnected) return;
    const { left, top, width, height } = node.getBoundingClientRect();
    const current = buttons.every(isUncovered) ? [left, top, width, height].join(" ") : "";
    if (!current || current !== place || now - last > SEEN_MS) since = now; // frames stop while the tab is hidden
    [place, last] = [current, now];
    disable(now - since < SEEN_MS);
    requestAnimationFrame(look);
  };
  disable(true);
  requestAnimationFrame(look);
}
