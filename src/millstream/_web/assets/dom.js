// What every page needs of the document, and how figures are written. What comes from a server is set as text, never
// as markup.

export const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash, and `for`, `role`) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || (value === false && name !== "spellcheck")) continue;
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Set a text only where it changed: nothing is drawn, selected or read out again for nothing. */
export function write(node, text) {
  const wanted = String(text);
  if (node.textContent !== wanted) node.textContent = wanted;
}

/** Bring up what has just been written further down than anybody sees: on a phone, a result stands below its form. */
export function reveal(node) {
  if (node.getBoundingClientRect().top > innerHeight - 96) node.scrollIntoView({ block: "nearest" });
}

/** Show what should be there of the two: the content, or the word that there is none. */
export function either(content, empty, there) {
  content.hidden = !there;
  empty.hidden = there;
}

const colors = new Map();
const forget = () => colors.clear();
addEventListener("millstream-theme", forget);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", forget);

/** A token such as "--accent" as the color it is now, for a canvas. */
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
const times = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });

/** A count: in full as long as it is short. */
export const count = (value) => (Math.abs(value) < 100_000 ? whole : short).format(value);

/** A measured value with about three figures. */
export function figure(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 100_000) return short.format(value);
  const digits = size >= 100 || size === 0 ? 0 : size >= 10 ? 1 : 2;
  return value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** A time that has passed, in its two largest units. */
export function duration(seconds) {
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.floor(seconds) % 60, "s"],
  ];
  const first = Math.max(0, parts.findIndex(([amount]) => amount > 0));
  const shown = seconds < 1 ? [[0, "s"]] : parts.slice(first, first + 2);
  return shown.map(([amount, unit]) => `${amount} ${unit}`).join(" ");
}

/** The time of day, to the second. */
export const clock = (date) => times.format(date);

/** JSON as a person reads it. */
export const pretty = (value) => JSON.stringify(value, null, 2);

const wordsOf = (name) => name.replace(/[_\W]+|(?<=[a-z0-9])(?=[A-Z])/g, " ").trim().replace(/^./, (first) => first.toUpperCase());

/** What a tool is called in lists: its title, or its name if the title only repeats the name in words. */
export const labelOf = ({ name, title }) => (title && title !== wordsOf(name) ? title : name);
