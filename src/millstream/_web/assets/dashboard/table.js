// A table of live rows, with sorting, a filter, and pages that fit the height. While the mouse or the keyboard focus is in
// it, or a finger is down, rows don't move: only their figures change, and new rows are counted.

import { count, element, hasWords, icon, iconButton, makeButton, write } from "../dom.js";
import { drawWhenReleased } from "../shell/controls.js";

const LEAST_ROWS = 6;
const PAGER_PX = 36;

/**
 * @typedef {{id: string, title: string, hint?: string, says?: (row: any) => string, raised?: (row: any) => boolean, number?: boolean, down?: boolean, sort?: (row: any) => any, fill: (cell: HTMLElement, row: any) => void, csv?: (row: any) => string, wide?: boolean, narrow?: boolean, head?: boolean}} Column
 */
/**
 * A column of texts, sorted by the property that it's named after.
 *
 * @param {string} id
 * @param {string} title
 * @param {(row: any) => string} text
 * @param {Partial<Column>} [others]
 * @returns {Column}
 */
export const column = (id, title, text = (row) => row[id], others = {}) => ({
  id,
  title,
  sort: (row) => row[id],
  fill: (cell, row) => {
    write(cell, text(row));
    if (others.says) cell.title = others.says(row);
    if (others.raised) cell.classList.toggle("raised", others.raised(row));
  },
  ...others
});

/** @type {typeof column} a column of figures */
export const number = (id, title, text = (row) => count(row[id]), others = {}) =>
  column(id, title, text, { number: true, ...others });

/**
 * The columns for the errors that the server caused, and its clients.
 *
 * @param {(row: any) => any} [sort]
 */
export const errorColumns = (sort = (row) => row.server_errors) => [
  number("server_errors", "Server errors", undefined, {
    hint: "Failures of this server, or of servers behind it",
    sort,
    raised: (row) => row.server_errors > 0
  }),
  number("client_errors", "Client errors", (row) => count(row.errors - row.server_errors), {
    hint: "Calls that the caller has to change, such as wrong arguments and unknown names",
    sort: (row) => row.errors - row.server_errors
  })
];

/** @param {string} text text beginning like a formula is marked as text, because anyone can choose names */
const csvCell = (text) =>
  `"${(/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text).replaceAll('"', '""')}"`;

/** @type {Map<string, LiveTable>} tables by the id of their place */
export const tables = new Map();

export class LiveTable {
  #place;
  #columns;
  #key;
  #empty;
  /** @type {Json[]} */
  #rows = [];
  /** @type {Map<string, {node: HTMLElement, cells: HTMLElement[]}>} */
  #lines = new Map();
  #page = 0;
  #sort;
  #down = true;
  /** @type {(row: Json) => boolean} */
  #fits;
  #body = element("tbody");
  #heads = new Map();
  #status = element("p", { className: "soft small grow", role: "status" });
  #back;
  #next;
  #box;
  #none;
  #pager;

  /** @type {Map<string, Json>} rows by key, in the frozen order */
  #frozen = new Map();
  #outside;
  #over = false;

  /**
   * @param {HTMLElement} place container of the table
   * @param {{name: string, columns: Column[], key: (row: any) => string, sort: string, down?: boolean, empty: [string, string], words?: (row: any) => string, search?: HTMLInputElement | null, fits?: (row: any) => boolean, pager?: HTMLElement | null}} options
   *   `sort` is the initial sort column, or "" for the order of the rows; `words` returns the text for `search`; `pager` is a container for the page
   *   buttons above the table, instead of below it
   */
  constructor(
    place,
    { name, columns, key, sort, down = true, empty, words = () => "", search = null, fits = () => true, pager = null }
  ) {
    tables.set(place.id, this);
    this.#place = place;
    this.#columns = columns;
    this.#key = key;
    this.#sort = sort;
    this.#down = down;
    this.#empty = empty;
    this.#fits = (row) => fits(row) && hasWords(words(row), search?.value ?? "");
    const head = element("tr", {}, ...columns.map((column) => this.#head(column)));
    const table = element("table", { "aria-label": name }, element("thead", {}, head), this.#body);
    this.#box = element(
      "div",
      { className: "scroll", tabIndex: 0, role: "group", "aria-label": `Table of ${name.toLowerCase()}` },
      table
    );
    this.#none = element("p", "empty");
    this.#back = this.#turn("back", "Previous page", -1);
    this.#next = this.#turn("next", "Next page", 1);
    this.#pager = element("div", "row pager", this.#status, this.#back, this.#next);
    this.#outside = Boolean(pager);
    pager?.append(this.#pager);
    place.replaceChildren(this.#box, this.#none, ...(pager ? [] : [this.#pager]));
    this.#hold();
    // The whole row is the button's.
    this.#body.addEventListener("click", (event) => {
      const at = /** @type {Element} */ (event.target);
      /** @type {HTMLElement | null | undefined} */
      const name = at.closest("tr")?.querySelector(".row-name");
      if (!at.closest("button") && getSelection()?.isCollapsed) name?.click();
    });
    search?.addEventListener("input", () => {
      this.#page = 0;
      this.draw(true);
    });
    new ResizeObserver(() => this.draw(true)).observe(place);
    this.draw(true);
  }

  /** Track whether the mouse is over the rows. A finger counts only while it's down. */
  #hold() {
    this.#body.addEventListener("pointerenter", ({ pointerType }) => (this.#over = pointerType === "mouse"));
    this.#body.addEventListener("pointerleave", () => {
      this.#over = false;
      this.draw(false);
    });
    this.#body.addEventListener("focusout", () => setTimeout(() => this.draw(false)));
  }

  /** @param {Column} column */
  #head(column) {
    const mark = element("span", { className: "sort-mark", "aria-hidden": "true" });
    const cell = element("th", {
      scope: "col",
      className: [column.number && "number", column.wide && "wide", column.narrow && "narrow"].filter(Boolean).join(" ")
    });
    if (!column.sort) cell.append(column.title);
    else {
      const button = makeButton(
        { className: "quiet sort", title: column.hint ?? `Sort by ${column.title.toLowerCase()}` },
        () => {
          this.#down = this.#sort === column.id ? !this.#down : Boolean(column.number || column.down);
          this.#sort = column.id;
          this.#page = 0;
          this.draw(true);
        },
        column.title,
        mark
      );
      cell.append(button);
    }
    this.#heads.set(column.id, { cell, mark });
    return cell;
  }

  /** @param {string} shape @param {string} title @param {number} step */
  #turn(shape, title, step) {
    const button = iconButton(title, icon(shape), () => {
      if (button.ariaDisabled === "true") return;
      this.#page += step;
      this.draw(true);
    });
    return button;
  }

  /** Replace the rows. @param {Json[]} rows */
  show(rows) {
    this.#rows = rows;
    drawWhenReleased(this.#body, () => this.draw(false));
  }

  /** Redraw; `again` sorts the rows even while the table is in use. @param {boolean} again */
  draw(again) {
    const held = !again && this.#frozen.size > 0 && (this.#over || this.#body.querySelector(":focus-visible") !== null);
    const fitting = this.#rows.filter(this.#fits);
    const rows = held ? this.#unmoved(fitting) : this.#sorted(fitting);
    const row = Number.parseFloat(getComputedStyle(this.#place).getPropertyValue("--row")) || 24;
    const size = Math.max(
      LEAST_ROWS,
      Math.floor((this.#place.clientHeight - row - 4 - (this.#outside ? 0 : PAGER_PX)) / row)
    );
    const pages = Math.max(1, Math.ceil(rows.length / size));
    this.#page = Math.min(this.#page, pages - 1);
    const from = this.#page * size;
    this.#fill(rows.slice(from, from + size));
    this.#box.hidden = rows.length === 0;
    this.#none.hidden = rows.length > 0;
    if (!rows.length)
      this.#none.replaceChildren(
        element("strong", {}, this.#rows.length ? "No matches" : this.#empty[0]),
        this.#rows.length ? "Try fewer words, or show all." : this.#empty[1]
      );
    const waiting = held ? fitting.filter((each) => !this.#frozen.has(this.#key(each))).length : 0;
    this.#pager.hidden = pages < 2 && !waiting;
    this.#back.hidden = this.#next.hidden = pages < 2;
    write(
      this.#status,
      `${waiting ? `Held, ${count(waiting)} new · ` : ""}${count(from + 1)}–${count(Math.min(rows.length, from + size))} of ${count(rows.length)}`
    );
    this.#back.ariaDisabled = String(this.#page === 0);
    this.#next.ariaDisabled = String(this.#page === pages - 1);
    for (const [id, { cell, mark }] of this.#heads) {
      const chosen = id === this.#sort;
      cell.ariaSort = chosen ? (this.#down ? "descending" : "ascending") : null;
      write(mark, chosen ? (this.#down ? "↓" : "↑") : "");
    }
  }

  /** Return all rows that fit the filter, as CSV. */
  csv() {
    const rows = this.#sorted(this.#rows.filter(this.#fits)).map((row) =>
      this.#columns.map(({ csv, fill }) => {
        if (csv) return csv(row);
        const cell = element("td");
        fill(cell, row);
        return cell.textContent ?? "";
      })
    );
    const lines = [this.#columns.map(({ title }) => title), ...rows];
    return `${lines.map((line) => line.map(csvCell).join(",")).join("\r\n")}\r\n`;
  }

  /** Return the frozen rows with current figures. @param {Json[]} rows */
  #unmoved(rows) {
    for (const row of rows) if (this.#frozen.has(this.#key(row))) this.#frozen.set(this.#key(row), row);
    return [...this.#frozen.values()];
  }

  /** @param {Json[]} rows */
  #sorted(rows) {
    const by = this.#columns.find(({ id }) => id === this.#sort)?.sort ?? ((row) => rows.indexOf(row));
    const down = this.#down ? -1 : 1;
    /** @param {Json} one @param {Json} other */
    const compare = (one, other) => {
      const [a, b] = [by(one), by(other)];
      const lists = Array.isArray(a) ? [a, b] : [[a], [b]];
      for (let place = 0; place < lists[0].length; place += 1) {
        const [x, y] = [lists[0][place], lists[1][place]];
        const order = typeof x === "string" ? x.localeCompare(y) : (x ?? -1) - (y ?? -1);
        if (order) return order * down;
      }
      return this.#key(one).localeCompare(this.#key(other));
    };
    const sorted = [...rows].sort(compare);

    this.#frozen = new Map(sorted.map((row) => [this.#key(row), row]));
    return sorted;
  }

  /** @param {Json[]} rows */
  #fill(rows) {
    const wanted = rows.map((row) => {
      const key = this.#key(row);
      const line = this.#lines.get(key) ?? this.#line();
      this.#lines.set(key, line);
      this.#columns.forEach(({ fill }, place) => fill(line.cells[place], row));
      return line.node;
    });
    const shown = new Set(rows.map(this.#key));
    for (const key of this.#lines.keys()) if (!shown.has(key)) this.#lines.delete(key);
    if (wanted.length !== this.#body.rows.length || wanted.some((node, place) => this.#body.rows[place] !== node))
      this.#body.replaceChildren(...wanted);
  }

  #line() {
    const cells = this.#columns.map((column) =>
      element(column.head ? "th" : "td", {
        scope: column.head ? "row" : undefined,
        className: column.number ? "number" : column.wide ? "wide one-line" : "one-line"
      })
    );
    return { cells, node: element("tr", {}, ...cells) };
  }
}

/**
 * Fill a cell with a button, created once; `run` receives the current row.
 *
 * @param {HTMLElement} cell
 * @param {Json} row
 * @param {string} title
 * @param {(row: Json) => void} run
 */
export function cellButton(cell, row, title, run) {
  if (!cell.firstChild) {
    cell.append(element("button", { type: "button", className: "quiet row-name" }));
  }
  const button = /** @type {HTMLButtonElement} */ (cell.firstChild);
  button.onclick = () => run(row);
  write(button, title);
  return button;
}

/** Fill a cell with a badge. @param {HTMLElement} cell @param {string} text @param {string} look */
export function cellBadge(cell, text, look) {
  if (!cell.firstChild) cell.append(element("span"));
  const badge = /** @type {HTMLElement} */ (cell.firstChild);
  badge.className = look === "plain" ? "soft" : text ? `badge ${look}` : "";
  write(badge, text);
}
