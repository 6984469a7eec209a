// Keeps the buttons of a question disabled until the user can have seen it, so a double click or a key that was meant for
// something else doesn't answer it.

const SEEN_MS = 600;

/** Whether a button is in view, and nothing covers it. */
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
  const disable = (disabled) => {
    for (const each of buttons) if (each.disabled !== disabled) each.disabled = disabled;
  };
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
