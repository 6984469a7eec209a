// Tabs, by click or arrow keys.

import { element, makeButton } from "../dom.js";

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
  const panels = new Set(entries.map(({ panel }) => panel).filter(Boolean));
  const byId = new Map(
    entries.map(({ id, title, panel }) => {
      const count = element("span", "count");
      const tab = makeButton({ role: "tab", id: `tab-${id}`, "aria-controls": panel }, () => choose(id), title, count);
      return [id, { tab, count, panel }];
    })
  );
  list.replaceChildren(...[...byId.values()].map(({ tab }) => tab));
  list.addEventListener("keydown", (event) => {
    const all = [...byId.keys()].filter((id) => !byId.get(id).tab.hidden);
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key] * (getComputedStyle(list).direction === "rtl" ? -1 : 1);
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
    byId.get(next).tab.focus();
  });

  function choose(id, notify = true) {
    current = id;
    for (const [name, { tab }] of byId) {
      tab.ariaSelected = String(name === id);
      tab.tabIndex = name === id ? 0 : -1;
    }
    const { panel, tab } = byId.get(id);
    for (const each of panels) document.getElementById(each).hidden = each !== panel;
    if (panel) document.getElementById(panel).setAttribute("aria-labelledby", tab.id);
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    if (notify) onChange(id);
  }

  choose(current, false);
  const count = (id, text, look = "") => {
    const node = byId.get(id).count;
    if (node.textContent !== String(text)) node.textContent = text;
    node.className = `count ${look}`;
  };
  const hide = (id, hidden) => (byId.get(id).tab.hidden = hidden);
  return { choose, count, hide, current: () => current };
}
