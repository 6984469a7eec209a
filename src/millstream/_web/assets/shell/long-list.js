// Long lists: their groups, and a list that draws only its visible rows.

import { element, icon } from "../dom.js";
import { shortNames } from "./names.js";

// Collapsible groups for long lists: by the upstream or first tag of each item, or by the first word of its name that isn't
// a verb.

/** @typedef {{group: string, size: number, closed: boolean}} Head the heading row of a group */

const MIN_ITEMS = 12; // shorter lists aren't grouped
const WORDS = /[A-Z]?[a-z0-9]+|[A-Z0-9]+/g;
const VERBS = new Set(
  "add cancel check close create delete describe edit fetch find get list make merge move open put read remove rename run search send set show start stop update upload write".split(
    " "
  )
);
const OTHER = "Other";

/** Return what a name is about: `issue` for `list_issues` and `getIssue`. @param {string} name */
function prefixOf(name) {
  const words = (name.match(WORDS) ?? []).map((word) => word.toLowerCase());
  return VERBS.has(words[0]) && words.length > 1 ? words[1].replace(/(?<![sui])s$/, "") : (words[0] ?? "");
}

/**
 * Return the items by group, ordered by the groups' names; null if groups wouldn't help.
 *
 * @template T
 * @param {T[]} items
 * @param {(item: T) => string} nameOf
 * @param {(item: T) => string[]} tagsOf
 * @returns {Map<string, T[]> | null}
 */
export function groupItems(items, nameOf, tagsOf = () => []) {
  if (items.length < MIN_ITEMS) return null;
  /** @param {T} item */
  const prefix = (item) => (tagsOf(item).length ? "" : prefixOf(nameOf(item)));
  const alike = Map.groupBy(items, prefix);
  const groups = Map.groupBy(
    items,
    (item) => tagsOf(item)[0] ?? (alike.get(prefix(item))?.[1] && prefix(item) ? prefix(item) : OTHER)
  );
  if (groups.size < 2 || groups.size > items.length / 2) return null;
  return new Map(
    [...groups].sort(([one], [other]) => Number(one === OTHER) - Number(other === OTHER) || one.localeCompare(other))
  );
}

const MAX_OPEN_ITEMS = 60; // groups of longer lists start closed

/**
 * Return the items with a heading row above each group, without the items of closed groups.
 *
 * @template T
 * @param {Map<string, T[]>} groups
 * @param {Map<string, boolean>} chosen group -> whether the user opened or closed it
 * @param {{current?: T, all?: boolean}} options the group of `current` starts open; `all` opens every group
 * @returns {Array<T | Head>}
 */
export function withHeads(groups, chosen, { current, all = false }) {
  const many = [...groups.values()].flat().length > MAX_OPEN_ITEMS;
  return [...groups].flatMap(([group, items]) => {
    const open = all || (chosen.get(group) ?? (!many || items.some((item) => item === current)));
    return [{ group, size: items.length, closed: !open }, ...(open ? items : [])];
  });
}

const UPSTREAM = "millstream.gateway/upstream";

/**
 * Return the upstream of an item behind a gateway, or its tags. Servers use different keys of `_meta` for tags.
 *
 * @param {Json} item
 */
export function tagsOf(item) {
  const upstream = item._meta?.[UPSTREAM]?.[0];
  if (upstream && typeof upstream === "string") return [upstream];
  for (const [key, value] of Object.entries(item._meta ?? {})) {
    const tags = /(^|\/)tags$/.test(key) ? value : value?.tags;
    if (Array.isArray(tags) && tags.length && tags.every((tag) => typeof tag === "string")) return tags;
  }
  return [];
}

// A virtual list with one selected item: only the visible rows exist. The pointer, the arrow keys, Home, End, and Enter
// work in the list, and the keys also in its filter field.

const OVERSCAN_ROWS = 6;

/** @param {Json} item @returns {item is Head} */
const isHead = (item) => "group" in item;
/** @param {Head} head @param {Child[]} name */
const headRow = ({ size, closed }, name) => [
  icon(closed ? "next" : "fold"),
  element("span", { className: "group-name", dir: "auto" }, ...name),
  element("span", "count", String(size)),
  element("span", "visually-hidden", closed ? ", closed" : ", open")
];

export class LongList {
  #box;
  #inner = element("div", { className: "rows", role: "presentation" });
  /** @type {Json[]} */
  #items = []; // and the headings of groups
  #tops = [0]; // top of each row, and the total height
  #selected = -1;
  #active = -1; // row with the keyboard
  #options;
  /** @type {Parameters<LongList["show"]>} */
  #shown = [[], undefined]; // what `show` was called with
  #unfolded = new Map(); // group -> whether the user opened or closed it
  #drawn = "";
  #rows = new Map(); // index -> element, reused as long as the items are the same
  /** @type {Map<Json | string, () => Child[]>} nodes of the label of each item and group */
  #names = new Map();

  /**
   * @param {HTMLElement} box an element with `role="listbox"` and `tabindex="0"` that scrolls
   * @param {{label: (item: any) => string, row: (item: any, name: Child[]) => Child[], choose: (item: any) => void}} options
   *   `row` returns the nodes of a row, from those of its label; `choose` is called with the selected item
   */
  constructor(box, options) {
    this.#box = box;
    this.#options = options;
    box.replaceChildren(this.#inner);
    box.addEventListener("scroll", () => this.#draw(), { passive: true });
    box.addEventListener("keydown", (event) => this.key(event));
    // Not for the pointer, because the rows must stay under it until it's released.
    box.addEventListener(
      "focus",
      () => this.#active < 0 && box.matches(":focus-visible") && this.#move(Math.max(0, this.#selected))
    );
    box.addEventListener("click", (event) => {
      /** @type {HTMLElement | null} */
      const row = /** @type {Element} */ (event.target).closest("[role=option]");
      // If the rows were redrawn between press and release, the target is their container.
      const index = row
        ? Number(row.dataset.index)
        : this.#indexAt(event.clientY - this.#inner.getBoundingClientRect().top);
      if (event.target !== this.#box && index >= 0 && index < this.#items.length) this.#choose(index);
    });
    new ResizeObserver(() => this.#draw()).observe(box);
  }

  /**
   * Show these items, and mark the selected one.
   *
   * @param {Json[]} found
   * @param {Json | null | undefined} current
   * @param {Map<string, Json[]> | null} [groups] the items by group, if they're shown below headings
   * @param {boolean} [all] opens every group
   */
  show(found, current, groups = null, all = false) {
    this.#shown = [found, current, groups, all];
    /** @type {Json[]} */
    const items = groups ? withHeads(groups, this.#unfolded, { current: current ?? undefined, all }) : found;
    if (items.length !== this.#items.length || items.some((item, index) => item !== this.#items[index]))
      this.#rows.clear();
    this.#names.clear();
    /** @param {Array<Json | string>} keys @param {string[]} names @param {string} [group] */
    const shorten = (keys, names, group) =>
      shortNames(names, group).forEach((nodes, index) => this.#names.set(keys[index], nodes));
    for (const [group, members] of groups ?? [["", found]]) shorten(members, members.map(this.#options.label), group);
    const heads = [...(groups ?? new Map()).keys()];
    shorten(heads, heads);
    this.#items = items;
    this.#selected = items.indexOf(/** @type {Json} */ (current)); // -1 for none
    this.#active = this.#selected;
    this.#drawn = "";
    let top = 0;
    const style = getComputedStyle(this.#box);
    const [head, row] = ["--head", "--row"].map((name) => Number.parseFloat(style.getPropertyValue(name)) * 16);
    this.#tops = [0, ...items.map((item) => (top += isHead(item) ? head : row))];
    this.#inner.style.height = `${top}px`;
    this.#draw();
  }

  /** Return the index of the row at a height, or the number of rows below the last one. @param {number} y */
  #indexAt(y) {
    let [low, high] = [0, this.#items.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#tops[middle + 1] <= y) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Mark another item as selected, and scroll it into view. @param {Json} selected */
  mark(selected) {
    this.#selected = this.#active = this.#items.indexOf(selected);
    this.#drawn = "";
    this.#reveal(this.#active);
  }

  /** Recreate the rows with the next `show`, because their content has changed. */
  invalidate() {
    this.#rows.clear();
  }

  /** Whether an item is in the list. @param {Json} item */
  has(item) {
    return this.#items.includes(item);
  }

  /** Handle a key. The filter field forwards its keys. @param {KeyboardEvent} event */
  key(event) {
    const page = Math.max(
      1,
      this.#indexAt(this.#box.scrollTop + this.#box.clientHeight) - this.#indexAt(this.#box.scrollTop) - 1
    );
    const last = this.#items.length - 1;
    /** @type {Record<string, number>} */
    const moves = {
      ArrowDown: this.#active + 1,
      ArrowUp: this.#active - 1,
      PageDown: this.#active + page,
      PageUp: this.#active - page,
      ...(event.target === this.#box ? { Home: 0, End: last } : {})
    };
    if (event.key === "Enter" && this.#items.length) {
      event.preventDefault();
      this.#choose(
        this.#active < 0
          ? Math.max(
              0,
              this.#items.findIndex((item) => !isHead(item))
            )
          : this.#active
      );
    } else if (event.key in moves && this.#items.length) {
      event.preventDefault();
      this.#move(Math.min(last, Math.max(0, moves[event.key])));
    }
  }

  /** @param {number} index */
  #choose(index) {
    const item = this.#items[index];
    this.#active = index;
    if (!isHead(item)) return this.#options.choose(item);
    this.#unfolded.set(item.group, item.closed);
    this.show(...this.#shown);
    this.#move(this.#items.findIndex((each) => each.group === item.group));
  }

  /** @param {number} index */
  #move(index) {
    this.#active = index;
    this.#drawn = "";
    this.#reveal(index);
  }

  /** @param {number} index */
  #reveal(index) {
    if (index >= 0) {
      const [top, end] = [this.#tops[index], this.#tops[index + 1]];
      if (top < this.#box.scrollTop) this.#box.scrollTop = top;
      else if (end > this.#box.scrollTop + this.#box.clientHeight) this.#box.scrollTop = end - this.#box.clientHeight;
    }
    this.#draw();
  }

  /** @param {number} index */
  #row(index) {
    const item = this.#items[index];
    let row = this.#rows.get(index);
    if (!row) {
      const name = this.#names.get(isHead(item) ? item.group : item)?.() ?? [];
      row = element(
        "div",
        { role: "option", id: `${this.#box.id}-${index}`, "aria-posinset": String(index + 1) },
        ...(isHead(item) ? headRow(item, name) : this.#options.row(item, name))
      );
      row.dataset.index = index;
      this.#rows.set(index, row);
    }
    row.className = [index === this.#active && "at", isHead(item) && "group"].filter(Boolean).join(" ");
    row.ariaSelected = String(index === this.#selected);
    row.setAttribute("aria-setsize", String(this.#items.length));
    row.style.top = `${this.#tops[index]}px`;
    return row;
  }

  #draw() {
    const first = Math.max(0, this.#indexAt(this.#box.scrollTop) - OVERSCAN_ROWS);
    const last = Math.min(
      this.#items.length,
      this.#indexAt(this.#box.scrollTop + this.#box.clientHeight) + 1 + OVERSCAN_ROWS
    );
    const key = `${first} ${last} ${this.#active} ${this.#selected}`;
    if (key === this.#drawn) return;
    this.#drawn = key;
    for (const [index, row] of this.#rows) {
      if (index >= first && index < last) continue;
      row.remove();
      this.#rows.delete(index);
    }
    const rows = [];
    for (let index = first; index < last; index += 1) rows.push(this.#row(index));
    if (rows.length !== this.#inner.childElementCount || rows.some((row, place) => this.#inner.children[place] !== row))
      this.#inner.replaceChildren(...rows);
    if (this.#active >= first && this.#active < last)
      this.#box.setAttribute("aria-activedescendant", `${this.#box.id}-${this.#active}`);
    else this.#box.removeAttribute("aria-activedescendant");
  }
}
