// One thing that may be looked at in several ways, each of which is drawn when it's chosen.

import { element } from "../dom.js";

/**
 * @param {Array<[string, () => Node]>} ways what each is called, and what makes it; the first is shown at first
 * @returns {{node: HTMLElement, bar: HTMLElement}} what is shown, and the buttons
 */
export function views(ways) {
  const body = element("div", { className: "content" });
  const drawn = new Map();
  const show = (name) => {
    if (!drawn.has(name)) drawn.set(name, ways.find(([each]) => each === name)[1]());
    body.replaceChildren(drawn.get(name));
    buttons.forEach((button) => (button.ariaPressed = String(button.textContent === name)));
  };
  const buttons = ways.map(([name]) => {
    const button = element("button", { type: "button", "aria-pressed": "false" }, name);
    button.addEventListener("click", () => show(name));
    return button;
  });
  show(ways[0][0]);
  return { node: body, bar: element("div", { className: "segments", role: "group", "aria-label": "Show as" }, ...buttons) };
}
