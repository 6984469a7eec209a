// The frame of every page: the buttons of the bar, the theme, navigation, the command palette, and shortcuts.

import { $, element, icon, makeButton, swap } from "../dom.js";
import { fetchJson } from "./connection.js";
import { commands, keycaps, openPalette, shortcut, showKeys } from "./palette.js";

/** @type {Record<string, {next: string, icon: string, label: string}>} */
const THEMES = {
  auto: { next: "light", icon: "auto", label: "as the system" },
  light: { next: "dark", icon: "sun", label: "light" },
  dark: { next: "auto", icon: "moon", label: "dark" }
};

let links = /** @type {HTMLAnchorElement[]} */ ([...document.querySelectorAll(".bar nav a")]);

function addBarButtons() {
  const find = makeButton(
    { className: "quiet small find", title: "Find a command" },
    () => openPalette(),
    icon("search"),
    element("span", "name", "Find"),
    element("span", { className: "row", "aria-hidden": "true" }, ...keycaps("mod+k"))
  );
  const themeIcon = icon("auto");
  const theme = makeButton(
    { className: "quiet small square", id: "theme" },
    () => millstreamTheme.set(THEMES[millstreamTheme.get()].next),
    themeIcon
  );
  const update = () => {
    const current = THEMES[millstreamTheme.get()];
    swap(themeIcon, current.icon);
    theme.title = `Theme: ${current.label}`;
    theme.ariaLabel = `Theme: ${current.label}. Switch to ${THEMES[current.next].label}`;
  };
  addEventListener("millstream-theme", update);
  update();
  const help = makeButton(
    { className: "quiet small square help", title: "Keyboard shortcuts", "aria-label": "Keyboard shortcuts" },
    showKeys,
    icon("help")
  );
  document.getElementById("bar-tools")?.append(find, theme, help);
}

/** Say who is signed in, and remove links to pages that they may not open. The bar has this menu only where people
 * sign in. */
async function showAccount() {
  for (const button of $("account-menu").querySelectorAll("button"))
    button.onclick = async () => {
      await fetch("sign-out", { method: "POST", body: button.dataset.out });
      location.href = "sign-in";
    };
  const found = await fetchJson("sign-in/account", "your account");
  if (!found) return;
  $("account-name").textContent = $("account-who").textContent = found.name;
  $("account-scopes").textContent = found.scopes.join(", ") || "what needs no scope";
  links = links.filter(({ dataset: { scope }, ariaCurrent, parentNode }, place) => {
    const opens =
      !scope || ariaCurrent || found.scopes.some((/** @type {string} */ each) => [scope, "everything"].includes(each));
    if (!opens) parentNode?.removeChild(links[place]);
    return opens;
  });
}

/** @type {Record<string, string>} */
const LETTERS = { Connect: "h", Inspect: "i", Dashboard: "d", Gateway: "g", Docs: "o", Chat: "c" };
/** @param {HTMLAnchorElement} link */
const keysOf = (link) => `g ${LETTERS[link.textContent]}`;
/** @param {HTMLAnchorElement} link */
const go = (link) => (location.href = link.href);

addBarButtons();
document.querySelector(".bar [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" }); // on a phone
if ($("account")) showAccount();
shortcut("mod+k", "Find a command", () => openPalette());
shortcut("?", "Show the shortcuts", showKeys);
for (const link of links) shortcut(keysOf(link), `Go to ${link.textContent}`, () => links.includes(link) && go(link));
commands(() => [
  ...links
    .filter((link) => link.ariaCurrent !== "page")
    .map((link) => ({
      title: `Go to ${link.textContent}`,
      group: "Go to",
      keys: keysOf(link),
      run: () => go(link)
    })),
  ...Object.entries(THEMES).map(([name, { icon: iconName, label }]) => ({
    title: `Theme: ${label}`,
    group: "Theme",
    icon: iconName,
    run: () => millstreamTheme.set(name)
  })),
  { title: "Keyboard shortcuts", group: "Help", icon: "help", keys: "?", run: showKeys }
]);
