// Resizable panes: a handle between two panes for the mouse, touch, and the arrow keys. The width is stored in the
// browser. A double click, or Enter, resets it.

import { element } from "../dom.js";

const STEP_PX = 24;

/**
 * Add a handle to the edge of a pane.
 *
 * @param {HTMLElement} pane
 * @param {{grid: HTMLElement, name: string, label: string, min: number, rest: number, before?: boolean}} options `name`
 *   is the CSS property of `grid` for the width; `min` and `rest` are the minimum pixels of the pane and of the other
 *   panes; `before` adds the handle at the start of the pane
 */
export function makeResizable(pane, { grid, name, label, min, rest, before = false }) {
  const key = `millstream.pane.${location.pathname.split("/").at(-1)}.${name}`;
  const handle = element("div", {
    className: `handle ${before ? "before" : "after"}`,
    tabIndex: 0,
    role: "separator",
    "aria-orientation": "vertical",
    "aria-label": label,
    "aria-controls": pane.id,
    title: `${label}: drag, or use the arrow keys. A double click resets it.`
  });
  pane.append(handle);
  let width = 0; // 0 for the default
  const max = () => Math.max(min, grid.clientWidth - rest);
  const updateAria = () => {
    handle.setAttribute("aria-valuemin", String(min));
    handle.setAttribute("aria-valuemax", String(max()));
    handle.setAttribute("aria-valuenow", String(Math.round(pane.getBoundingClientRect().width)));
  };
  const apply = () => {
    if (width) grid.style.setProperty(name, `${Math.min(width, max())}px`);
    else grid.style.removeProperty(name);
    updateAria();
  };
  const resize = (wanted) => {
    width = wanted === null ? 0 : Math.round(Math.min(max(), Math.max(min, wanted)));
    apply();
    try {
      if (width) localStorage.setItem(key, String(width));
      else localStorage.removeItem(key);
    } catch {
      // Storage is blocked: the width lasts as long as the page.
    }
  };
  const outward = before ? -1 : 1; // the direction in which the pane grows
  const direction = () => (getComputedStyle(grid).direction === "rtl" ? -1 : 1);
  let from = null;
  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    handle.classList.add("held");
    from = { x: event.clientX, width: pane.getBoundingClientRect().width };
  });
  handle.addEventListener(
    "pointermove",
    (event) => from && resize(from.width + outward * direction() * (event.clientX - from.x))
  );
  for (const end of ["pointerup", "pointercancel"]) {
    handle.addEventListener(end, () => {
      from = null;
      handle.classList.remove("held");
    });
  }
  handle.addEventListener("dblclick", () => resize(null));
  handle.addEventListener("keydown", (event) => {
    const now = pane.getBoundingClientRect().width;
    const step = outward * direction() * STEP_PX;
    const wanted = { ArrowRight: now + step, ArrowLeft: now - step, Home: min, End: max(), Enter: null }[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    resize(wanted);
  });
  new ResizeObserver(apply).observe(grid);
  try {
    width = Number(localStorage.getItem(key)) || 0;
  } catch {
    // Storage is blocked.
  }
  apply();
}
