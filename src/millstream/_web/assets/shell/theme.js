// Sets the theme before the first paint to avoid a flash, so it's a classic script in the head. Other scripts change the
// theme through `millstreamTheme`.

(() => {
  const KEY = "millstream.theme";
  const root = document.documentElement;
  const stored = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // Storage is blocked: the theme lasts as long as the page.
    }
  };
  /** @param {string | null} theme */
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
    dispatchEvent(new Event("millstream-theme"));
  };
  apply(stored());
  addEventListener("storage", (event) => event.key === KEY && apply(event.newValue));
  globalThis.millstreamTheme = {
    get: () => root.dataset.theme ?? "auto",
    set: (theme) => {
      try {
        if (theme === "auto") localStorage.removeItem(KEY);
        else localStorage.setItem(KEY, theme);
      } catch {
        // Storage is blocked.
      }
      apply(theme);
    }
  };
})();
