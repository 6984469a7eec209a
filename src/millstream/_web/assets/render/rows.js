// A list of objects as a table that is sorted by its heads.

import { count, element } from "../dom.js";

const MAX_COLUMNS = 16;
const LOOKED_AT = 50; // rows whose names become columns
const SHOWN = 100;
const MAX_SHOWN = 2_000;

const isRow = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

/** The rows of a value: a list of objects, or an object whose one member is such a list. Null where it's something else. */
export function rowsOf(value) {
  if (isRow(value)) {
    const lists = Object.values(value).filter(Array.isArray);
    return Object.keys(value).length === 1 && lists.length === 1 ? rowsOf(lists[0]) : null;
  }
  if (!Array.isArray(value) || value.length < 2 || !value.every(isRow)) return null;
  return columnsOf(value).length ? value : null;
}

const columnsOf = (rows) => [...new Set(rows.slice(0, LOOKED_AT).flatMap((row) => Object.keys(row)))].slice(0, MAX_COLUMNS);

const written = (value) => (value === undefined || value === null ? "" : typeof value === "string" ? value : JSON.stringify(value));

function compare(one, other) {
  if (one === other) return 0;
  if (one === undefined || one === null) return 1; // what's missing comes last
  if (other === undefined || other === null) return -1;
  return typeof one === "number" && typeof other === "number" ? one - other : written(one).localeCompare(written(other), undefined, { numeric: true });
}

/**
 * @param {object[]} rows as `rowsOf` gives them
 * @param {string} name of the table
 */
export function rowTable(rows, name = "Rows of the result") {
  const columns = columnsOf(rows);
  const numbers = new Set(columns.filter((column) => rows.every((row) => row[column] === undefined || row[column] === null || typeof row[column] === "number")));
  let by = null;
  let down = false;
  let shown = SHOWN;
  const body = element("tbody");
  const more = element("button", { type: "button", className: "quiet small" });
  const cell = (row, column) => element("td", { className: numbers.has(column) ? "number" : "", dir: "auto" }, element("span", { className: typeof row[column] === "object" && row[column] !== null ? "code cell" : "cell" }, written(row[column])));
  const draw = () => {
    const sign = down ? -1 : 1;
    const missing = (row) => row[by] === undefined || row[by] === null;
    const sorted = by === null ? rows : [...rows].sort((one, other) => (missing(one) || missing(other) ? compare(one[by], other[by]) : sign * compare(one[by], other[by])));
    body.replaceChildren(...sorted.slice(0, shown).map((row) => element("tr", {}, ...columns.map((column) => cell(row, column)))));
    for (const [column, { head, mark }] of heads) {
      if (column === by) head.ariaSort = down ? "descending" : "ascending";
      else head.removeAttribute("aria-sort");
      mark.textContent = column === by ? (down ? "↓" : "↑") : "";
    }
    const rest = Math.min(rows.length, MAX_SHOWN) - shown;
    more.hidden = rest <= 0;
    more.textContent = `Show ${count(rest)} more`;
  };
  const heads = new Map(columns.map((column) => {
    const mark = element("span", { className: "sort-mark", "aria-hidden": "true" });
    const button = element("button", { type: "button", className: "quiet sort", title: `Sort by ${column}` }, element("span", { dir: "auto" }, column), mark);
    const head = element("th", { scope: "col", className: numbers.has(column) ? "number" : "" }, button);
    button.addEventListener("click", () => {
      down = by === column ? !down : false;
      by = column;
      draw();
    });
    return [column, { head, mark }];
  }));
  more.addEventListener("click", () => {
    shown = MAX_SHOWN;
    draw();
  });
  draw();
  const table = element("table", { "aria-label": name }, element("thead", {}, element("tr", {}, ...[...heads.values()].map(({ head }) => head))), body);
  const cut = rows.length > MAX_SHOWN ? `, of which ${count(MAX_SHOWN)} can be shown` : "";
  return element(
    "div", { className: "row-table" },
    element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": name }, table),
    element("p", { className: "row soft small" }, `${count(rows.length)} rows${cut}`, more),
  );
}
