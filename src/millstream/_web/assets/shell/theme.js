// Sets the chosen theme before the first paint, so that nothing flashes: a plain script in the head, no module. The
// rest of the page changes the theme through `millstreamTheme`.

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
        // As above.
      }
      apply(theme);
    },
  };
})();
