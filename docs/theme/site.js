// Draws the diagrams: pages write them as Mermaid fences. The library is only loaded by pages that have one.

const LIBRARY = new URL("mermaid/mermaid.esm.min.mjs", import.meta.url).href;
/** @type {WeakMap<Element, string>} the text of each diagram, before it became a picture */
const sources = new WeakMap();

/** The computed value of a color token, as the library can't read variables. @param {string} name */
function color(name) {
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.color = `var(${name})`;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function options() {
  const [surface, sunken, line, text, soft, accent, tint] = [
    "--surface",
    "--sunken",
    "--line-strong",
    "--text",
    "--text-soft",
    "--accent",
    "--raised"
  ].map(color);
  const { fontFamily } = getComputedStyle(document.body);
  return {
    startOnLoad: false,
    securityLevel: "strict",
    theme: "base",
    fontFamily,
    sequence: {
      actorFontFamily: fontFamily,
      messageFontFamily: fontFamily,
      noteFontFamily: fontFamily,
      mirrorActors: false
    },
    themeVariables: {
      darkMode: document.body.dataset.mdColorScheme === "slate",
      background: surface,
      primaryColor: sunken,
      primaryTextColor: text,
      primaryBorderColor: accent,
      secondaryColor: tint,
      secondaryTextColor: text,
      secondaryBorderColor: line,
      tertiaryColor: surface,
      tertiaryTextColor: text,
      tertiaryBorderColor: line,
      lineColor: soft,
      textColor: text,
      mainBkg: sunken,
      nodeBorder: accent,
      clusterBkg: surface,
      clusterBorder: line,
      edgeLabelBackground: surface,
      actorBkg: sunken,
      actorBorder: accent,
      actorTextColor: text,
      actorLineColor: line,
      signalColor: soft,
      signalTextColor: text,
      labelBoxBkgColor: sunken,
      labelBoxBorderColor: line,
      labelTextColor: text,
      loopTextColor: text,
      noteBkgColor: tint,
      noteTextColor: text,
      noteBorderColor: line,
      activationBkgColor: sunken,
      activationBorderColor: accent
    }
  };
}

async function draw() {
  const found = /** @type {HTMLElement[]} */ ([...document.querySelectorAll(".diagram")]);
  if (!found.length) return;
  const [{ default: mermaid }] = await Promise.all([import(LIBRARY), document.fonts.ready]);
  mermaid.initialize(options());
  for (const [number, element] of found.entries()) {
    if (!sources.has(element)) sources.set(element, element.textContent);
    const { svg } = await mermaid.render(`diagram-${number}`, sources.get(element));
    element.innerHTML = svg;
    element.dataset.drawn = document.body.dataset.mdColorScheme;
  }
}

/** Make what the theme adds to code and tables accessible: boxes that scroll take the focus. */
function label() {
  for (const bar of document.querySelectorAll("nav.md-code__nav")) bar.role = "presentation"; // it's no landmark
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset .highlight code, .diagram")) {
    if (box.scrollWidth > box.clientWidth) box.setAttribute("tabindex", "0");
  }
}

/** Put the inspector with its recorded session in place of its picture. */
function offerDemo() {
  const button = document.getElementById("try");
  if (!button) return;
  button.onclick = () => {
    const frame = document.createElement("iframe");
    frame.title = "The inspector, with a recorded session";
    frame.src = `${button.dataset.demo}#tool=search&args={"words":"Tolkien"}`;
    document.getElementById("inspector")?.replaceChildren(frame);
    frame.focus();
  };
}

/** The inspector follows the colors of the site, in this browser. */
function shareScheme() {
  const { mdColorScheme } = document.body.dataset;
  try {
    localStorage.setItem("millstream.theme", mdColorScheme === "slate" ? "dark" : "light");
  } catch {
    // Storage is blocked: the inspector follows the system.
  }
}

new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", label);
label();
shareScheme();
/** @type {any} */ (globalThis).document$.subscribe(() => {
  // Each page, also those that the theme loads without a reload
  draw();
  offerDemo();
});
new MutationObserver(() => {
  shareScheme();
  draw();
}).observe(document.body, { attributeFilter: ["data-md-color-scheme"] });
