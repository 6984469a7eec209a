// Panes whose width a person chooses: a handle between two of them, for the mouse, a finger, and the arrow keys. The
// width is kept in the browser. A double click, or Enter, brings back the one that the page has by itself.

import { element } from "../dom.js";

const STEP_PX = 24;

/**
 * Put a handle at the edge of a pane.
 *
 * @param {HTMLElement} pane
 * @param {{grid: HTMLElement, name: string, label: string, least: number, rest: number, before?: boolean}} options `name`
 *   is that of the property of `grid` that holds the width; `least` and `rest` are the pixels that the pane and the
 *   others need; `before` puts the handle at the start of the pane
 */
export function resizable(pane, { grid, name, label, least, rest, before = false }) {
  const key = `millstream.pane.${location.pathname.split("/").at(-1)}.${name}`;
  const handle = element("div", { className: `handle ${before ? "before" : "after"}`, tabIndex: 0, role: "separator", "aria-orientation": "vertical", "aria-label": label, "aria-controls": pane.id, title: `${label}: drag, or use the arrow keys. A double click resets it.` });
  pane.append(handle);
  let width = 0; // none is chosen
  const most = () => Math.max(least, grid.clientWidth - rest);
  const tell = () => {
    handle.setAttribute("aria-valuemin", String(least));
    handle.setAttribute("aria-valuemax", String(most()));
    handle.setAttribute("aria-valuenow", String(Math.round(pane.getBoundingClientRect().width)));
  };
  const apply = () => {
    if (width) grid.style.setProperty(name, `${Math.min(width, most())}px`);
    else grid.style.removeProperty(name);
    tell();
  };
  const choose = (wanted) => {
    width = wanted === null ? 0 : Math.round(Math.min(most(), Math.max(least, wanted)));
    apply();
    try {
      if (width) localStorage.setItem(key, String(width));
      else localStorage.removeItem(key);
    } catch {
      // Storage is blocked: the width lasts as long as the page.
    }
  };
  const outward = before ? -1 : 1; // the way in which the pane grows
  const mirrored = () => (getComputedStyle(grid).direction === "rtl" ? -1 : 1);
  let from = null;
  handle.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    handle.focus();
    handle.setPointerCapture(event.pointerId);
    handle.classList.add("held");
    from = { x: event.clientX, width: pane.getBoundingClientRect().width };
  });
  handle.addEventListener("pointermove", (event) => from && choose(from.width + outward * mirrored() * (event.clientX - from.x)));
  for (const end of ["pointerup", "pointercancel"]) {
    handle.addEventListener(end, () => {
      from = null;
      handle.classList.remove("held");
    });
  }
  handle.addEventListener("dblclick", () => choose(null));
  handle.addEventListener("keydown", (event) => {
    const now = pane.getBoundingClientRect().width;
    const way = outward * mirrored() * STEP_PX;
    const wanted = { ArrowRight: now + way, ArrowLeft: now - way, Home: least, End: most(), Enter: null }[event.key];
    if (wanted === undefined) return;
    event.preventDefault();
    choose(wanted);
  });
  new ResizeObserver(apply).observe(grid);
  try {
    width = Number(localStorage.getItem(key)) || 0;
  } catch {
    // As above.
  }
  apply();
}
