// Content of results: rows, tracebacks, and the blocks of a message.

import { count, element, fold, icon, makeButton, pre, pretty, segments, wrapped } from "../dom.js";
import { colored } from "./json.js";
import { looksLikeMarkdown, markdownBlock } from "./markdown.js";
import { isObject } from "../schema/resolve.js";
import { copyable } from "../shell/controls.js";

// Several views of the same data. Each is drawn when it's first selected.

/**
 * @param {Array<[string, () => Node]>} entries name and draw function of each view; the first is shown initially
 * @returns {{node: HTMLElement, bar: HTMLElement}} the content, and the buttons
 */
export function views(entries) {
  const body = element("div", "content");
  const draws = new Map(entries);
  /** @type {Map<string, Node | undefined>} */
  const drawn = new Map();
  /** @param {string} name */
  const show = (name) => {
    const view = drawn.get(name) ?? draws.get(name)?.();
    drawn.set(name, view);
    body.replaceChildren(view ?? "");
    mark(name);
  };
  const { bar, mark } = segments(
    "Show as",
    entries.map(([name]) => name),
    show
  );
  show(entries[0][0]);
  return { node: body, bar };
}

// A list of objects as a sortable table.

const MAX_COLUMNS = 16;
const SAMPLED_ROWS = 50; // rows whose properties become columns
const SHOWN = 100;
const MAX_SHOWN = 2_000;

/**
 * Return the rows of a value: a list of objects, or an object whose only property is one. Null for other values.
 *
 * @param {unknown} value
 * @returns {Json[] | null}
 */
export function rowsOf(value) {
  if (isObject(value)) {
    const lists = Object.values(value).filter(Array.isArray);
    return Object.keys(value).length === 1 && lists.length === 1 ? rowsOf(lists[0]) : null;
  }
  if (!Array.isArray(value) || value.length < 2 || !value.every(isObject)) return null;
  return columnsOf(value).length ? value : null;
}

/** @param {Json[]} rows */
const columnsOf = (rows) =>
  [...new Set(rows.slice(0, SAMPLED_ROWS).flatMap((row) => Object.keys(row)))].slice(0, MAX_COLUMNS);

/** @param {unknown} value */
const cellText = (value) => (value == null ? "" : typeof value === "string" ? value : JSON.stringify(value));

/** @param {unknown} one @param {unknown} other */
function compare(one, other) {
  if (one === other) return 0;
  if (one == null) return 1; // missing values last
  if (other == null) return -1;
  return typeof one === "number" && typeof other === "number"
    ? one - other
    : cellText(one).localeCompare(cellText(other), undefined, { numeric: true });
}

/**
 * @param {Json[]} rows as returned by `rowsOf`
 * @param {string} name accessible name of the table
 */
export function rowTable(rows, name = "Rows of the result") {
  const columns = columnsOf(rows);
  const numbers = new Set(
    columns.filter((column) => rows.every((row) => row[column] == null || typeof row[column] === "number"))
  );
  /** @type {string | null} */
  let sortColumn = null;
  let descending = false;
  let shown = SHOWN;
  const body = element("tbody");
  const more = makeButton("quiet small", () => {
    shown = MAX_SHOWN;
    draw();
  });
  /** @param {Json} row @param {string} column */
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
    const by = sortColumn;
    const sorted =
      by === null
        ? rows
        : [...rows].sort(
            (one, other) => (one[by] == null || other[by] == null ? 1 : sign) * compare(one[by], other[by])
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
    element("p", "row soft small", `${count(rows.length)} ${rows.length === 1 ? "row" : "rows"}${limit}`, more)
  );
}

// A Python traceback: the exception, and the line of code that raised it.

const PLACE = /^ {2}File "([^"\n]+)", line (\d+)(?:, in ([^\n]+))?(?:\n {4}([^\n]+))?/gm;

/** Parse a traceback; null if the text isn't one. @param {string} text */
export function parseTraceback(text) {
  if (!/^\s*(Traceback \(most recent call last\)|\+ Exception Group Traceback)/.test(text)) return null;
  const last = [...text.matchAll(PLACE)].at(-1);
  const raised = text
    .trimEnd()
    .split("\n")
    .findLast((line) => /^\S/.test(line));
  if (!last || !raised) return null;
  const [, file, line, where = "", code = ""] = last;
  return { raised, file, line: Number(line), where, code };
}

/** Render a traceback; null if the text isn't one. @param {string} text */
export function traceback(text) {
  const found = parseTraceback(text);
  if (!found) return null;
  const { raised, file, line, where, code } = found;
  const name = file.split(/[/\\]/).at(-1);
  const whole = copyable(pre("Traceback", text), "Copy the traceback");
  const source = code
    ? element(
        "pre",
        { className: "source-line", tabIndex: 0, "aria-label": `Line ${line} of ${name}`, dir: "ltr" },
        element("span", "soft", `${line}  `),
        code
      )
    : null;
  return element(
    "section",
    { className: "traceback", "aria-label": "Where it failed" },
    element("p", { className: "raised", dir: "auto" }, raised),
    element(
      "p",
      "small",
      element("code", { title: file }, `${name}:${line}`),
      where && where !== "<module>" ? element("span", "soft", ` in ${where}`) : ""
    ),
    source,
    fold("Traceback", whole)
  );
}

// Renders MCP content blocks: text, Markdown, JSON, images, audio, and resources. Data from the server is set as text;
// images and audio are shown from data URLs.

const MAX_RENDERED = 50_000;
const FRONTMATTER = /^---\r?\n[\s\S]*?\r?\n---\r?\n/; // only shown in the source view

/** @param {string} text @param {string} label @param {Array<Node | string>} [nodes] */
const block = (text, label, nodes = [text], dir = "auto") =>
  copyable(wrapped(label, dir, ...nodes), `Copy ${label.toLowerCase()}`, () => text);

/** Return indented JSON, or null if the text isn't JSON. @param {string} text */
function formatJson(text) {
  if (!/^\s*[[{]/.test(text)) return null;
  try {
    return pretty(JSON.parse(text));
  } catch {
    return null;
  }
}

/** Create an element with several views and their buttons. @param {...[string, () => Node]} entries */
function withViews(...entries) {
  const { node, bar } = views(entries);
  return element("div", "stack tight", bar, node);
}

/** @param {string} text @param {string} label */
const renderMarkdown = (text, label) =>
  withViews(
    ["Rendered", () => markdownBlock(text.replace(FRONTMATTER, ""), { role: "group", "aria-label": label })],
    ["Source", () => block(text, label)]
  );

/**
 * Render text as JSON, a traceback, Markdown, or plain text, whichever it looks like.
 *
 * @param {string} text
 * @param {string} label
 */
function renderText(text, label, mimeType = "") {
  const json = formatJson(text);
  if (json !== null) {
    const rows = rowsOf(JSON.parse(json));
    const plain = () => block(json, label, colored(json), "ltr");
    return [rows ? withViews(["Table", () => rowTable(rows)], ["JSON", plain]) : plain()];
  }
  const failure = mimeType ? null : traceback(text);
  if (failure) return [failure];
  const isMarkdown = /markdown/.test(mimeType) || (!mimeType && looksLikeMarkdown(text));
  return [isMarkdown && text.length <= MAX_RENDERED ? renderMarkdown(text, label) : block(text, label)];
}

/** @param {string} data @param {string | undefined} mimeType @param {string} label */
function file(data, mimeType, label) {
  const type = mimeType && /^[\w.+-]+\/[\w.+-]+$/.test(mimeType) ? mimeType : "application/octet-stream";
  const size = Math.floor((data.length * 3) / 4) - (data.match(/=*$/)?.[0].length ?? 0);
  const link = element(
    "a",
    {
      className: "button",
      href: `data:${type};base64,${data}`,
      download: `${label}.${type.split("/")[1].replace(/\W.*/, "")}`
    },
    icon("download"),
    `Save ${label}`
  );
  return element("p", "row", link, element("span", "soft small", `${type}, ${size.toLocaleString()} bytes`));
}

/** @param {string} data @param {string | undefined} mimeType @param {string} label */
function binary(data, mimeType, label) {
  const source = `data:${mimeType};base64,${data}`;
  if (/^image\/[\w.+-]+$/.test(mimeType ?? "")) return [element("img", { src: source, alt: `${label} (${mimeType})` })];
  if (/^audio\/[\w.+-]+$/.test(mimeType ?? ""))
    return [element("audio", { src: source, controls: true, "aria-label": label }), file(data, mimeType, "audio")];
  return [file(data, mimeType, "file")];
}

/** @param {Json} found */
const resource = (found) =>
  found.blob !== undefined
    ? binary(found.blob, found.mimeType, found.uri)
    : renderText(found.text ?? "", found.uri, found.mimeType);

/** @param {...unknown} words */
const about = (...words) => element("p", "soft small about", words.filter(Boolean).join(", "));

/**
 * Render a link to a resource. `read(uri)` is called when it's followed.
 *
 * @param {Json} content
 * @param {(uri: string) => void} read
 */
function link(content, read) {
  const follow = makeButton(
    "",
    () => read(content.uri),
    icon("link"),
    element("span", "one-line", `Read ${content.uri}`)
  );
  const facts = [
    content.title ?? content.name,
    content.description,
    content.mimeType,
    content.size && `${content.size.toLocaleString()} bytes`
  ];
  return [element("div", "resource-link", about(...facts), follow)];
}

/** @type {Record<string, (content: Json, read: (uri: string) => void) => Node[]>} */
const BLOCKS = {
  text: ({ text }) => renderText(text, "Text"),
  image: ({ data, mimeType }) => binary(data, mimeType, "Image of the result"),
  audio: ({ data, mimeType }) => binary(data, mimeType, "Audio of the result"),
  /** @param {Json} found */
  resource: ({ resource: found }) => [about(found.uri, found.mimeType), ...resource(found)],
  resource_link: link
};

/** Render the annotations of a block. @param {Json} content */
function annotationNotes({ annotations = {} }) {
  const parts = [
    annotations.audience && `for ${annotations.audience.join(" and ")}`,
    annotations.priority !== undefined && `priority ${annotations.priority}`,
    annotations.lastModified && `changed ${annotations.lastModified}`
  ];
  return parts.some(Boolean) ? [about(...parts)] : [];
}

/**
 * Return the nodes of a content block. `read(uri)` is called when a link to a resource is followed.
 *
 * @param {any} content
 * @param {(uri: string) => void} read
 */
export function nodes(content, read) {
  const known = Object.hasOwn(BLOCKS, content?.type);
  return known
    ? [...annotationNotes(content), ...BLOCKS[content.type](content, read)]
    : [block(pretty(content), content?.type ?? "Content")];
}

/** Return the nodes of the contents of a resource. @param {Json[]} list */
export const contents = (list) => list.flatMap((each) => [about(each.uri, each.mimeType), ...resource(each)]);
