// Icons in the color of the surrounding text. Their shapes are part of the page (parts/bar.html), so they're available
// when the server isn't.

const SVG = "http://www.w3.org/2000/svg";

/** Create an icon. It's hidden from screen readers, because the surrounding control has a name. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** Change the shape of an icon. */
export const swap = (svg, name) => svg.firstChild.setAttribute("href", `#icon-${name}`);
