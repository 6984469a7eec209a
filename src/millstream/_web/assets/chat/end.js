// A list that stays scrolled to its end while it grows, unless the user has scrolled up.

import { isAtEnd } from "../dom.js";

export class End {
  follows = true;

  /** @param {HTMLElement} box @param {HTMLElement} newer button that scrolls back to the end */
  constructor(box, newer) {
    this.box = box;
    this.newer = newer;
    newer.onclick = () => this.scroll();
    box.addEventListener("scroll", () => {
      this.follows = isAtEnd(box);
      if (this.follows) newer.hidden = true;
    });
    // Keep the newest entry visible when the box shrinks.
    new ResizeObserver(() => this.stay()).observe(box);
  }

  /** Scroll to the end. */
  scroll() {
    this.follows = true;
    this.box.scrollTop = this.box.scrollHeight;
    this.newer.hidden = true;
  }

  /** Keep the box at the end if it was there; otherwise, show the button if there's something new. */
  stay(hasNew = !this.newer.hidden) {
    if (this.follows) this.scroll();
    else this.newer.hidden = !hasNew;
  }
}
