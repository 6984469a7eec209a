// Tabs: one of a few views, by click or arrow keys. Tabs that a page writes down have their panels from the start.

import { element } from "../dom.js";

/**
 * Tabs for what a page shows.
 *
 * @param {HTMLElement} list an element with `role="tablist"`
 * @param {Array<{id: string, title: string, panel?: string}>} entries `panel` is the id of what the tab shows; panels
 *   of other tabs are hidden
 * @param {(id: string) => void} chosen
 * @returns {{choose: (id: string, tell?: boolean) => void, count: (id: string, text: string | number, look?: string) => void, hide: (id: string, hidden: boolean) => void, current: () => string}}
 */
export function tabs(list, entries, chosen = () => {}) {
  let current = entries[0].id;
  const panels = new Set(entries.map(({ panel }) => panel).filter(Boolean));
  const made = new Map(
    entries.map(({ id, title, panel }) => {
      const count = element("span", { className: "count" });
      const tab = element("button", { type: "button", role: "tab", id: `tab-${id}`, "aria-controls": panel }, title, count);
      tab.addEventListener("click", () => choose(id));
      return [id, { tab, count, panel }];
    }),
  );
  list.replaceChildren(...[...made.values()].map(({ tab }) => tab));
  list.addEventListener("keydown", (event) => {
    const all = [...made.keys()].filter((id) => !made.get(id).tab.hidden);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key] * (getComputedStyle(list).direction === "rtl" ? -1 : 1);
    const next = event.key === "Home" ? all[0] : event.key === "End" ? all.at(-1) : step ? all[(all.indexOf(current) + step + all.length) % all.length] : null;
    if (!next) return;
    event.preventDefault();
    choose(next);
    made.get(next).tab.focus();
  });

  function choose(id, tell = true) {
    current = id;
    for (const [name, { tab }] of made) {
      tab.ariaSelected = String(name === id);
      tab.tabIndex = name === id ? 0 : -1;
    }
    const { panel, tab } = made.get(id);
    for (const each of panels) document.getElementById(each).hidden = each !== panel;
    if (panel) document.getElementById(panel).setAttribute("aria-labelledby", tab.id);
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (tell) chosen(id);
  }

  choose(current, false);
  const count = (id, text, look = "") => {
    const node = made.get(id).count;
    if (node.textContent !== String(text)) node.textContent = text;
    node.className = `count ${look}`;
  };
  const hide = (id, hidden) => (made.get(id).tab.hidden = hidden);
  return { choose, count, hide, current: () => current };
}
