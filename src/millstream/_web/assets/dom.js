// DOM helpers and number formats shared by all pages. Data from a server is set as text, never as markup.

/**
 * Return the element with an id of this page's own HTML.
 *
 * @template {HTMLElement} [Type=HTMLInputElement]
 * @param {string} id
 * @returns {Type}
 */
export const $ = (id) => /** @type {Type} */ (document.getElementById(id));

/**
 * Create an element with properties, attributes (names that aren't properties, such as `aria-label`), and children.
 *
 * @template {string} Tag
 * @param {Tag} tag
 * @param {Json | string} [properties] or only the class name
 * @param {Array<Node | string | number | null | undefined>} children null and undefined are left out
 * @returns {Tag extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[Tag] : HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  if (typeof properties === "string") return element(tag, { className: properties }, ...children);
  const made = /** @type {any} */ (document.createElement(tag));
  for (const [name, value] of Object.entries(properties)) {
    if (value == null || (value === false && name !== "spellcheck") || name === "dir") continue;
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  if (properties.dir) made.dir = properties.dir; // last, because with "auto", each further child scans those before it
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * Create an icon. Its shape is part of the page (parts/bar.html), so it's available when the server isn't. It's hidden
 * from screen readers, because the surrounding control has a name.
 *
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Change the shape of an icon. @param {SVGElement} svg @param {string} name */
export const swap = (svg, name) => svg.firstElementChild?.setAttribute("href", `#icon-${name}`);

/**
 * Create a button.
 *
 * @param {Json | string} properties or only the class name
 * @param {((event: PointerEvent) => void) | null} onclick
 * @param {Array<Node | string>} children
 */
export const makeButton = (properties, onclick, ...children) =>
  element(
    "button",
    { type: "button", onclick, ...(typeof properties === "string" ? { className: properties } : properties) },
    ...children
  );

/**
 * Create a button with an icon instead of a text.
 *
 * @param {string} name
 * @param {Node} shape
 * @param {(event: PointerEvent) => void} onclick
 */
export const iconButton = (name, shape, onclick, properties = {}) =>
  makeButton({ className: "quiet small square", title: name, "aria-label": name, ...properties }, onclick, shape);

/** Create a block of code that can be scrolled with the keyboard. @param {string} label @param {...Child} children */
export const pre = (label, ...children) =>
  element("pre", { tabIndex: 0, "aria-label": label, dir: "ltr" }, ...children);

/** Create a block of text whose lines wrap. @param {string} label @param {string} dir @param {...Child} children */
export const wrapped = (label, dir, ...children) =>
  element("pre", { className: "wrap", tabIndex: 0, "aria-label": label, dir }, ...children);

/** Create the options of a `<select>` from values and titles. @param {Array<[string, string]>} entries */
export const optionsOf = (entries) => entries.map(([value, title]) => element("option", { value }, title));

/** Create a text input that the browser doesn't complete or check. @param {Json} properties */
export const textInput = (properties) => element("input", { autocomplete: "off", spellcheck: false, ...properties });

/**
 * Create a field: a label, its control, which needs an id, and further nodes.
 *
 * @param {string} label
 * @param {HTMLElement} control
 * @param {...Child} others
 */
export const labeled = (label, control, ...others) =>
  element("div", "field", element("label", { htmlFor: control.id }, label), control, ...others);

/** Create a row of a `<dl>`. @param {string} term @param {Child} value */
export const fact = (term, value) => element("div", {}, element("dt", {}, term), element("dd", { dir: "auto" }, value));

/** Return the rows of those facts that have a value. @param {Json} values */
export const facts = (values) =>
  Object.entries(values)
    .filter(([, value]) => value !== "" && value != null)
    .map(([term, value]) => fact(term, String(value)));

/** Create a `<details>` with a title. @param {string} title @param {...Child} children */
export const fold = (title, ...children) => element("details", {}, element("summary", {}, title), ...children);

/**
 * Create a `<details>` whose content is created when it's first opened.
 *
 * @param {Json | string} properties
 * @param {Child} summary
 * @param {() => Array<Node | string>} fill
 */
export function lazyDetails(properties, summary, fill) {
  const node = element("details", properties, summary);
  node.addEventListener("toggle", () => node.open && node.childElementCount === 1 && node.append(...fill()));
  return node;
}

/**
 * Create the buttons that choose one of several names, and a function that marks the chosen one.
 *
 * @param {string} label
 * @param {string[]} names
 * @param {(name: string) => void} choose
 */
export function segments(label, names, choose) {
  const buttons = names.map((name) => makeButton("", () => choose(name), name));
  /** @param {string} chosen */
  const mark = (chosen) => {
    for (const each of buttons) each.ariaPressed = String(each.textContent === chosen);
  };
  return { mark, bar: element("div", { className: "segments", role: "group", "aria-label": label }, ...buttons) };
}

/** Show a dialog that's removed when it closes. @param {Json} properties @param {...Child} children */
export function openDialog(properties, ...children) {
  const dialog = element("dialog", properties, ...children);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** Call a function instead of submitting a form. @param {HTMLFormElement} form @param {() => void} run */
export const onSubmit = (form, run) =>
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });

/** Whether a box is scrolled to its end, so that it should stay there when it grows. @param {Element} box */
export const isAtEnd = (box) => box.scrollHeight - box.scrollTop - box.clientHeight < 60;

/** Return the parameters in a hash. Names may contain a plus sign. */
export const hashParameters = (hash = location.hash) =>
  new URLSearchParams(hash.replace(/^#/, "").replaceAll("+", "%2B"));

/**
 * Set a node's text if it changed, so selections stay and screen readers don't repeat it.
 *
 * @param {Node} node
 * @param {string | number} text
 */
export function write(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/**
 * Set a node's text, and hide the node while it has none.
 *
 * @param {HTMLElement} node
 * @param {string | null | undefined} text
 */
export function showText(node, text) {
  write(node, text || "");
  node.hidden = !text;
}

/**
 * Return a value that the browser stores, or another one if there's none or the storage is blocked.
 *
 * @param {"local" | "session"} place
 * @param {string} key
 * @param {any} [otherwise]
 * @returns {any}
 */
export function stored(place, key, otherwise = null) {
  try {
    return JSON.parse(globalThis[`${place}Storage`].getItem(key) ?? "null") ?? otherwise;
  } catch {
    return otherwise;
  }
}

/**
 * Store a value. Returns false if the storage is full or blocked, so the value lasts as long as the page.
 *
 * @param {"local" | "session"} place
 * @param {string} key
 * @param {unknown} value
 */
export function store(place, key, value) {
  try {
    globalThis[`${place}Storage`].setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** Send JSON to a path of this server. @param {string} path @param {unknown} body */
export const post = (path, body) =>
  fetch(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

/** Whether a text contains each of the typed words. @param {string} text @param {string} typed */
export const hasWords = (text, typed) =>
  typed
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.toLowerCase().includes(word));

/** Scroll a node into view if it's below the window, as a result is below its form on a phone. @param {Element} node */
export function reveal(node) {
  if (node.getBoundingClientRect().top > innerHeight - 96) node.scrollIntoView({ block: "nearest" });
}

/**
 * Return the first visible element that matches a selector.
 *
 * @param {HTMLElement} node
 * @param {string} selector
 * @returns {HTMLElement | undefined}
 */
export const firstVisible = (node, selector) =>
  /** @type {HTMLElement[]} */ ([...node.querySelectorAll(selector)]).find((each) => each.checkVisibility());

/**
 * Show either the content or its empty state.
 *
 * @param {HTMLElement} content
 * @param {HTMLElement} empty
 * @param {boolean} hasContent
 */
export function showContentOrEmpty(content, empty, hasContent) {
  content.hidden = !hasContent;
  empty.hidden = hasContent;
}

const colors = new Map();
const clearColors = () => colors.clear();
addEventListener("millstream-theme", clearColors);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", clearColors);

/** Return the current color of a token such as "--accent", for a canvas. @param {string} token */
export function color(token) {
  if (!colors.has(token)) {
    const probe = element("span", { hidden: true });
    probe.style.color = `var(${token})`;
    document.body.append(probe);
    colors.set(token, getComputedStyle(probe).color);
    probe.remove();
  }
  return colors.get(token);
}

const whole = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const times = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23"
});
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

/** Format a count: in full up to five digits, then compact. @param {number} value */
export const count = (value) => (Math.abs(value) < 100_000 ? whole : short).format(value);

/** Format a measured value with about three significant digits. @param {number | null | undefined} value */
export function figure(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size >= 100_000) return short.format(value);
  const digits = size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2;
  return value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Format a duration in milliseconds. @param {number | null | undefined} value */
export const ms = (value) =>
  value == null ? "–" : value >= 1_000 ? `${figure(value / 1_000)} s` : `${figure(value)} ms`;

/** Format a size. @param {number} bytes */
export const size = (bytes) =>
  bytes >= 2 ** 30
    ? `${figure(bytes / 2 ** 30)} GiB`
    : bytes >= 2 ** 20
      ? `${figure(bytes / 2 ** 20)} MiB`
      : bytes >= 1_024
        ? `${figure(bytes / 1_024)} KiB`
        : `${bytes} B`;

/** Format a duration in its two largest units. @param {number} seconds */
export function duration(seconds) {
  /** @type {Array<[number, string]>} */
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.floor(seconds) % 60, "s"]
  ];
  const first = Math.max(
    0,
    parts.findIndex(([amount]) => amount > 0)
  );
  const shown = seconds < 1 ? [[0, "s"]] : parts.slice(first, first + 2);
  return shown.map(([amount, unit]) => `${amount} ${unit}`).join(" ");
}

/** Format the time of day, to the second. @param {Date | number} date */
export const clock = (date) => times.format(date);

const MAX_INDENTED = 50; // levels; the indentation grows with the square of their number

/** @param {unknown} value @param {number} levels @returns {boolean} */
const isDeeper = (value, levels) =>
  value !== null &&
  typeof value === "object" &&
  (levels === 0 || Object.values(value).some((each) => isDeeper(each, levels - 1)));

/** Format a value as JSON, indented unless it's very deep. @param {unknown} value */
export const pretty = (value) => JSON.stringify(value, null, isDeeper(value, MAX_INDENTED) ? 0 : 2);

/** @param {string} name */
const titleFromName = (name) =>
  name
    .replace(/[_\W]+|(?<=[a-z0-9])(?=[A-Z])/g, " ")
    .trim()
    .replace(/^./, (first) => first.toUpperCase());

/**
 * Return the label of a tool in lists: its title, or its name if the title only repeats the name in words.
 *
 * @param {Json} tool
 */
export const labelOf = ({ name, title }) => (title && title !== titleFromName(name) ? title : name);

/** Download a file. @param {string} name @param {BlobPart} data @param {string} type */
export function save(name, data, type) {
  const url = URL.createObjectURL(new Blob([data], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
