// A button that opens a short list of actions.

import { element, icon, makeButton } from "../dom.js";

let lastId = 0;

/**
 * @param {string} title label of the button
 * @param {string} iconName
 * @param {Array<{title: string, run: () => void}>} actions
 */
export function menu(title, iconName, actions) {
  const id = `menu-${++lastId}`;
  const button = makeButton(
    { className: "quiet", "aria-haspopup": "menu", "aria-expanded": "false", "aria-controls": id },
    () => (list.hidden ? open(0) : close()),
    icon(iconName),
    title
  );
  const items = actions.map(({ title: name, run }) => {
    const item = makeButton(
      { role: "menuitem", className: "quiet", tabIndex: -1 },
      () => {
        close();
        run();
      },
      name
    );
    return item;
  });
  const list = element(
    "div",
    { className: "menu-list", role: "menu", id, "aria-label": title, hidden: true },
    ...items
  );
  const node = element("div", "menu", button, list);
  const open = (at) => {
    list.hidden = false;
    button.ariaExpanded = "true";
    list.scrollIntoView({ block: "nearest" });
    items.at(at).focus();
  };
  const close = () => {
    if (list.contains(document.activeElement)) button.focus();
    list.hidden = true;
    button.ariaExpanded = "false";
  };
  node.addEventListener(
    "focusout",
    (event) => node.contains(/** @type {Node} */ (event.relatedTarget)) || list.hidden || close()
  );
  node.addEventListener("keydown", (event) => {
    const at = items.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement));
    const act = {
      ArrowDown: () => (list.hidden ? open(0) : items[(at + 1) % items.length].focus()),
      ArrowUp: () => (list.hidden ? open(-1) : items.at(at - 1).focus()),
      Escape: close
    }[event.key];
    if (!act || (event.key === "Escape" && list.hidden)) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  });
  return node;
}
