// A list of which one is chosen, however long: only the rows in view exist. The pointer, the arrow keys, Home, End and
// Enter work, from the list and from the field that filters it.

import { element } from "../dom.js";

const SPARE = 6;

/**
 * @template T
 * @param {HTMLElement} box an element with `role="listbox"` and `tabindex="0"` that scrolls
 * @param {{row: (item: T) => Node[], choose: (item: T) => void, height: (item: T) => number, head?: (item: T) => boolean}} options `row` gives what a row
 *   shows; `height` is that of an item's row in pixels; `head` says of a row that it
 *   stands above others
 */
export class LongList {
  #box;
  #inner = element("div", { className: "rows", role: "presentation" });
  #items = [];
  #tops = [0]; // of each row, and at last the height of all
  #chosen = -1;
  #at = -1;
  #options;
  #drawn = "";
  #rows = new Map(); // index -> the row of now, which stays the same element for as long as its item does

  constructor(box, options) {
    this.#box = box;
    this.#options = options;
    box.replaceChildren(this.#inner);
    box.addEventListener("scroll", () => this.#draw(), { passive: true });
    box.addEventListener("keydown", (event) => this.key(event));
    // By keyboard only: a press moves the focus, too, and the rows must stay under the pointer until it's released.
    box.addEventListener("focus", () => this.#at < 0 && box.matches(":focus-visible") && this.#move(Math.max(0, this.#chosen)));
    box.addEventListener("click", (event) => {
      const row = event.target.closest("[role=option]");
      // Where the rows were drawn anew between press and release, the click belongs to what holds them.
      const index = row ? Number(row.dataset.index) : this.#indexAt(event.clientY - this.#inner.getBoundingClientRect().top);
      if (event.target !== this.#box && index >= 0 && index < this.#items.length) this.#choose(index);
    });
    new ResizeObserver(() => this.#draw()).observe(box);
  }

  /** Show these items; the one that `same` says is chosen is marked. */
  show(items, chosen) {
    if (items.length !== this.#items.length || items.some((item, index) => item !== this.#items[index])) this.#rows.clear();
    this.#items = items;
    this.#chosen = items.indexOf(chosen);
    this.#at = this.#chosen;
    this.#drawn = "";
    this.#tops = [0];
    for (const item of items) this.#tops.push(this.#tops.at(-1) + this.#options.height(item));
    this.#inner.style.height = `${this.#tops.at(-1)}px`;
    this.#draw();
  }

  /** The row at a height, the last one below them all. */
  #indexAt(y) {
    let [low, high] = [0, this.#items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1] <= y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Mark another item as the chosen one, and bring it into view. */
  mark(chosen) {
    this.#chosen = this.#at = this.#items.indexOf(chosen);
    this.#drawn = "";
    this.#reveal(this.#at);
  }

  /** Let the rows be made anew when the list is shown the next time: what they show of their items has changed. */
  refresh() {
    this.#rows.clear();
  }

  /** Whether an item is among those that are shown. */
  has(item) {
    return this.#items.includes(item);
  }

  /** Bring the keyboard to the item of which `is` says so; nothing is chosen by that. */
  stand(is) {
    const index = this.#items.findIndex(is);
    if (index >= 0) this.#move(index);
  }

  /** What a key does here; true if it did something. The field that filters the list hands its keys on. */
  key(event) {
    const page = Math.max(1, this.#indexAt(this.#box.scrollTop + this.#box.clientHeight) - this.#indexAt(this.#box.scrollTop) - 1);
    const last = this.#items.length - 1;
    const moves = { ArrowDown: this.#at + 1, ArrowUp: this.#at - 1, PageDown: this.#at + page, PageUp: this.#at - page, ...(event.target === this.#box ? { Home: 0, End: last } : {}) };
    if (event.key === "Enter" && this.#items.length) {
      event.preventDefault();
      this.#choose(this.#at < 0 ? Math.max(0, this.#items.findIndex((item) => !this.#isHead(item))) : this.#at);
    } else if (event.key in moves && this.#items.length) {
      event.preventDefault();
      this.#move(Math.min(last, Math.max(0, moves[event.key])));
    }
  }

  #isHead(item) {
    return this.#options.head?.(item) ?? false;
  }

  #choose(index) {
    this.#at = index;
    this.#options.choose(this.#items[index]);
  }

  #move(index) {
    this.#at = index;
    this.#drawn = "";
    this.#reveal(index);
  }

  #reveal(index) {
    if (index >= 0) {
      const [top, end] = [this.#tops[index], this.#tops[index + 1]];
      if (top < this.#box.scrollTop) this.#box.scrollTop = top;
      else if (end > this.#box.scrollTop + this.#box.clientHeight) this.#box.scrollTop = end - this.#box.clientHeight;
    }
    this.#draw();
  }

  #row(index) {
    let row = this.#rows.get(index);
    if (!row) {
      row = element("div", { role: "option", id: `${this.#box.id}-${index}`, "aria-posinset": String(index + 1) }, ...this.#options.row(this.#items[index]));
      row.dataset.index = index;
      this.#rows.set(index, row);
    }
    row.className = [index === this.#at && "at", this.#isHead(this.#items[index]) && "group"].filter(Boolean).join(" ");
    row.ariaSelected = String(index === this.#chosen);
    row.setAttribute("aria-setsize", String(this.#items.length));
    row.style.top = `${this.#tops[index]}px`;
    return row;
  }

  #draw() {
    const first = Math.max(0, this.#indexAt(this.#box.scrollTop) - SPARE);
    const last = Math.min(this.#items.length, this.#indexAt(this.#box.scrollTop + this.#box.clientHeight) + 1 + SPARE);
    const key = `${first} ${last} ${this.#at} ${this.#chosen}`;
    if (key === this.#drawn) return;
    this.#drawn = key;
    for (const [index, row] of this.#rows) {
      if (index >= first && index < last) continue;
      row.remove();
      this.#rows.delete(index);
    }
    const rows = [];
    for (let index = first; index < last; index += 1) rows.push(this.#row(index));
    if (rows.length !== this.#inner.childElementCount || rows.some((row, place) => this.#inner.children[place] !== row)) this.#inner.replaceChildren(...rows);
    if (this.#at >= first && this.#at < last) this.#box.setAttribute("aria-activedescendant", `${this.#box.id}-${this.#at}`);
    else this.#box.removeAttribute("aria-activedescendant");
  }
}
