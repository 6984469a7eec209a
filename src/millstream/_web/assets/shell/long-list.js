// A list of which one is chosen, however long: only the rows in view exist. The pointer, the arrow keys, Home, End and
// Enter work, from the list and from the field that filters it.

import { element } from "../dom.js";

const SPARE = 6;

/**
 * @template T
 * @param {HTMLElement} box an element with `role="listbox"` and `tabindex="0"` that scrolls
 * @param {{row: (item: T) => Node[], choose: (item: T) => void, height: () => number}} options `row` gives what a row
 *   shows; `height` is that of each row in pixels
 */
export class LongList {
  #box;
  #inner = element("div", { className: "rows", role: "presentation" });
  #items = [];
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
      const index = row ? Number(row.dataset.index) : Math.floor((event.clientY - this.#inner.getBoundingClientRect().top) / this.#options.height());
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
    this.#inner.style.height = `${items.length * this.#options.height()}px`;
    this.#draw();
  }

  /** Mark another item as the chosen one, and bring it into view. */
  mark(chosen) {
    this.#chosen = this.#at = this.#items.indexOf(chosen);
    this.#drawn = "";
    this.#reveal(this.#at);
  }

  /** What a key does here; true if it did something. The field that filters the list hands its keys on. */
  key(event) {
    const page = Math.max(1, Math.floor(this.#box.clientHeight / this.#options.height()) - 1);
    const last = this.#items.length - 1;
    const moves = { ArrowDown: this.#at + 1, ArrowUp: this.#at - 1, PageDown: this.#at + page, PageUp: this.#at - page, ...(event.target === this.#box ? { Home: 0, End: last } : {}) };
    if (event.key === "Enter" && this.#items.length) {
      event.preventDefault();
      this.#choose(Math.max(0, this.#at));
    } else if (event.key in moves && this.#items.length) {
      event.preventDefault();
      this.#move(Math.min(last, Math.max(0, moves[event.key])));
    }
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
    const height = this.#options.height();
    if (index >= 0) {
      if (index * height < this.#box.scrollTop) this.#box.scrollTop = index * height;
      else if ((index + 1) * height > this.#box.scrollTop + this.#box.clientHeight) this.#box.scrollTop = (index + 1) * height - this.#box.clientHeight;
    }
    this.#draw();
  }

  #row(index, height) {
    let row = this.#rows.get(index);
    if (!row) {
      row = element("div", { role: "option", id: `${this.#box.id}-${index}`, "aria-posinset": String(index + 1) }, ...this.#options.row(this.#items[index]));
      row.dataset.index = index;
      this.#rows.set(index, row);
    }
    row.className = index === this.#at ? "at" : "";
    row.ariaSelected = String(index === this.#chosen);
    row.setAttribute("aria-setsize", String(this.#items.length));
    row.style.top = `${index * height}px`;
    return row;
  }

  #draw() {
    const height = this.#options.height();
    const first = Math.max(0, Math.floor(this.#box.scrollTop / height) - SPARE);
    const last = Math.min(this.#items.length, Math.ceil((this.#box.scrollTop + this.#box.clientHeight) / height) + SPARE);
    const key = `${first} ${last} ${this.#at} ${this.#chosen}`;
    if (key === this.#drawn) return;
    this.#drawn = key;
    for (const [index, row] of this.#rows) {
      if (index >= first && index < last) continue;
      row.remove();
      this.#rows.delete(index);
    }
    const rows = [];
    for (let index = first; index < last; index += 1) rows.push(this.#row(index, height));
    if (rows.length !== this.#inner.childElementCount || rows.some((row, place) => this.#inner.children[place] !== row)) this.#inner.replaceChildren(...rows);
    if (this.#at >= first && this.#at < last) this.#box.setAttribute("aria-activedescendant", `${this.#box.id}-${this.#at}`);
    else this.#box.removeAttribute("aria-activedescendant");
  }
}
