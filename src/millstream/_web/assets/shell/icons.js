// Icons, in the color of the text around them. Their shapes stand in the page (parts/bar.html), so that they are there
// when the server is not.

const SVG = "http://www.w3.org/2000/svg";

/** The icon of that name. It says nothing to a screen reader: the control around it has the name. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  made.append(use);
  return made;
}

/** Show another icon in its place. */
export const swap = (made, name) => made.firstChild.setAttribute("href", `#icon-${name}`);
