// A list of objects as a sortable table.

import { isObject } from "../schema/resolve.js";
import { count, element, makeButton } from "../dom.js";

const MAX_COLUMNS = 16;
const SAMPLED_ROWS = 50; // rows whose properties become columns
const SHOWN = 100;
const MAX_SHOWN = 2_000;

/** Return the rows of a value: a list of objects, or an object whose only property is one. Null for other values. */
export function rowsOf(value) {
  if (isObject(value)) {
    const lists = Object.values(value).filter(Array.isArray);
    return Object.keys(value).length === 1 && lists.length === 1 ? rowsOf(lists[0]) : null;
  }
  if (!Array.isArray(value) || value.length < 2 || !value.every(isObject)) return null;
  return columnsOf(value).length ? value : null;
}

const columnsOf = (rows) =>
  [...new Set(rows.slice(0, SAMPLED_ROWS).flatMap((row) => Object.keys(row)))].slice(0, MAX_COLUMNS);

const cellText = (value) => (value == null ? "" : typeof value === "string" ? value : JSON.stringify(value));

function compare(one, other) {
  if (one === other) return 0;
  if (one == null) return 1; // missing values last
  if (other == null) return -1;
  return typeof one === "number" && typeof other === "number"
    ? one - other
    : cellText(one).localeCompare(cellText(other), undefined, { numeric: true });
}

/**
 * @param {Record<string, any>[]} rows as returned by `rowsOf`
 * @param {string} name accessible name of the table
 */
export function rowTable(rows, name = "Rows of the result") {
  const columns = columnsOf(rows);
  const numbers = new Set(
    columns.filter((column) => rows.every((row) => row[column] == null || typeof row[column] === "number"))
  );
  let sortColumn = null;
  let descending = false;
  let shown = SHOWN;
  const body = element("tbody");
  const more = makeButton("quiet small", () => {
    shown = MAX_SHOWN;
    draw();
  });
  const cell = (row, column) =>
    element(
      "td",
      { className: numbers.has(column) ? "number" : "", dir: "auto" },
      element(
        "span",
        typeof row[column] === "object" && row[column] !== null ? "code cell" : "cell",
        cellText(row[column])
      )
    );
  const draw = () => {
    const sign = descending ? -1 : 1;
    const isMissing = (row) => row[sortColumn] == null;
    const sorted =
      sortColumn === null
        ? rows
        : [...rows].sort(
            (one, other) =>
              (isMissing(one) || isMissing(other) ? 1 : sign) * compare(one[sortColumn], other[sortColumn])
          );
    body.replaceChildren(
      ...sorted.slice(0, shown).map((row) => element("tr", {}, ...columns.map((column) => cell(row, column))))
    );
    for (const [column, { head, mark }] of heads) {
      head.ariaSort = column === sortColumn ? (descending ? "descending" : "ascending") : null;
      mark.textContent = column === sortColumn ? (descending ? "↓" : "↑") : "";
    }
    const rest = Math.min(rows.length, MAX_SHOWN) - shown;
    more.hidden = rest <= 0;
    more.textContent = `Show ${count(rest)} more`;
  };
  const heads = new Map(
    columns.map((column) => {
      const mark = element("span", { className: "sort-mark", "aria-hidden": "true" });
      const button = makeButton(
        { className: "quiet sort", title: `Sort by ${column}` },
        () => {
          descending = sortColumn === column ? !descending : false;
          sortColumn = column;
          draw();
        },
        element("span", { dir: "auto" }, column),
        mark
      );
      const head = element("th", { scope: "col", className: numbers.has(column) ? "number" : "" }, button);
      return [column, { head, mark }];
    })
  );
  draw();
  const table = element(
    "table",
    { "aria-label": name },
    element("thead", {}, element("tr", {}, ...[...heads.values()].map(({ head }) => head))),
    body
  );
  const limit = rows.length > MAX_SHOWN ? ` (only the first ${count(MAX_SHOWN)} can be shown)` : "";
  return element(
    "div",
    "row-table",
    element("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": name }, table),
    element("p", "row soft small", `${count(rows.length)} rows${limit}`, more)
  );
}
