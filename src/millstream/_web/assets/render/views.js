// Several views of the same data. Each is drawn when it's first selected.

import { element, segments } from "../dom.js";

/**
 * @param {Array<[string, () => Node]>} entries name and draw function of each view; the first is shown initially
 * @returns {{node: HTMLElement, bar: HTMLElement}} the content, and the buttons
 */
export function views(entries) {
  const body = element("div", "content");
  const drawn = new Map();
  const show = (name) => {
    if (!drawn.has(name)) drawn.set(name, entries.find(([each]) => each === name)[1]());
    body.replaceChildren(drawn.get(name));
    mark(name);
  };
  const { bar, mark } = segments(
    "Show as",
    entries.map(([name]) => name),
    show
  );
  show(entries[0][0]);
  return { node: body, bar };
}
