// Several views of the same data. Each is drawn when it's first selected.

import { element } from "../dom.js";

/**
 * @param {Array<[string, () => Node]>} entries name and draw function of each view; the first is shown initially
 * @returns {{node: HTMLElement, bar: HTMLElement}} the content, and the buttons
 */
export function views(entries) {
  const body = element("div", { className: "content" });
  const drawn = new Map();
  const show = (name) => {
    if (!drawn.has(name)) drawn.set(name, entries.find(([each]) => each === name)[1]());
    body.replaceChildren(drawn.get(name));
    buttons.forEach((button) => (button.ariaPressed = String(button.textContent === name)));
  };
  const buttons = entries.map(([name]) => {
    const button = element("button", { type: "button", "aria-pressed": "false" }, name);
    button.addEventListener("click", () => show(name));
    return button;
  });
  show(entries[0][0]);
  return {
    node: body,
    bar: element("div", { className: "segments", role: "group", "aria-label": "Show as" }, ...buttons)
  };
}
