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
 * @param {Record<string, any>} [properties]
 * @param {Array<Node | string | number | null | undefined>} children null and undefined are left out
 * @returns {Tag extends keyof HTMLElementTagNameMap ? HTMLElementTagNameMap[Tag] : HTMLElement}
 */
export function element(tag, properties = {}, ...children) {
  const made = /** @type {any} */ (document.createElement(tag));
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || (value === false && name !== "spellcheck") || name === "dir") continue;
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  if (properties.dir) made.dir = properties.dir; // last, because with "auto", each further child scans those before it
  return made;
}

/** Set a node's text if it changed, so selections stay and screen readers don't repeat it. */
export function write(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Scroll a node into view if it's below the window, as a result is below its form on a phone. */
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

/** Show either the content or its empty state. */
export function showContentOrEmpty(content, empty, hasContent) {
  content.hidden = !hasContent;
  empty.hidden = hasContent;
}

const colors = new Map();
const clearColors = () => colors.clear();
addEventListener("millstream-theme", clearColors);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", clearColors);

/** Return the current color of a token such as "--accent", for a canvas. */
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

/** Format a count: in full up to five digits, then compact. */
export const count = (value) => (Math.abs(value) < 100_000 ? whole : short).format(value);

/** Format a measured value with about three significant digits. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 100_000) return short.format(value);
  const digits = size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2;
  return value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Format a duration in its two largest units. */
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

/** Format the time of day, to the second. */
export const clock = (date) => times.format(date);

/** Format a value as indented JSON. */
export const pretty = (value) => JSON.stringify(value, null, 2);

const titleFromName = (name) =>
  name
    .replace(/[_\W]+|(?<=[a-z0-9])(?=[A-Z])/g, " ")
    .trim()
    .replace(/^./, (first) => first.toUpperCase());

/**
 * Return the label of a tool in lists: its title, or its name if the title only repeats the name in words.
 *
 * @param {Record<string, any>} tool
 */
export const labelOf = ({ name, title }) => (title && title !== titleFromName(name) ? title : name);
