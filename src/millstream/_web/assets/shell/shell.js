// What frames every page: the buttons of the bar, the theme, going from page to page, the command palette, the keys.

import { element } from "../dom.js";
import { icon, swap } from "./icons.js";
import { keycaps, shortcut, showKeys } from "./keys.js";
import { commands, openPalette } from "./palette.js";

const THEMES = { auto: { next: "light", icon: "auto", says: "as the system" }, light: { next: "dark", icon: "sun", says: "light" }, dark: { next: "auto", icon: "moon", says: "dark" } };

const links = [...document.querySelectorAll(".bar nav a")];

function barButtons() {
  const find = element("button", { type: "button", className: "quiet small find", title: "Find a command" }, icon("search"), element("span", { className: "name" }, "Find"), element("span", { className: "row", "aria-hidden": "true" }, ...keycaps("mod+k")));
  find.addEventListener("click", () => openPalette());
  const shown = icon("auto");
  const theme = element("button", { type: "button", className: "quiet small square", id: "theme" }, shown);
  const say = () => {
    const now = THEMES[millstreamTheme.get()];
    swap(shown, now.icon);
    theme.title = `Theme: ${now.says}`;
    theme.ariaLabel = `Theme: ${now.says}. Switch to ${THEMES[now.next].says}`;
  };
  theme.addEventListener("click", () => millstreamTheme.set(THEMES[millstreamTheme.get()].next));
  addEventListener("millstream-theme", say);
  say();
  const help = element("button", { type: "button", className: "quiet small square help", title: "Keyboard shortcuts", "aria-label": "Keyboard shortcuts" }, icon("help"));
  help.addEventListener("click", showKeys);
  document.getElementById("bar-tools")?.append(find, theme, help);
}

const LETTERS = { Connect: "h", Inspect: "i", Dashboard: "d", Gateway: "g", Docs: "o", Chat: "c" };
const keysOf = (link) => `g ${LETTERS[link.textContent]}`;
const go = (link) => (location.href = link.href);

barButtons();
shortcut("mod+k", "Find a command", () => openPalette());
shortcut("?", "Show the shortcuts", showKeys);
for (const link of links) shortcut(keysOf(link), `Go to ${link.textContent}`, () => go(link));
commands(() => [
  ...links
    .filter((link) => link.ariaCurrent !== "page")
    .map((link) => ({ title: `Go to ${link.textContent}`, group: "Go to", icon: "next", keys: keysOf(link), run: () => go(link) })),
  ...Object.entries(THEMES).map(([name, { icon: shown, says }]) => ({ title: `Theme: ${says}`, group: "Look", icon: shown, run: () => millstreamTheme.set(name) })),
  { title: "Keyboard shortcuts", group: "Help", icon: "help", keys: "?", run: showKeys },
]);
