// Lists that are drawn anew stay as they are while somebody presses something in them: a click needs the same element
// under the pointer when it's pressed and when it's released.

let pressed = null;
const waiting = new Map();

addEventListener("pointerdown", (event) => (pressed = event.target), { capture: true });
for (const end of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(end, () => setTimeout(released, 0), { capture: true }); // the click comes first
}

function released() {
  pressed = null;
  const draws = [...waiting.values()];
  waiting.clear();
  for (const draw of draws) draw();
}

/** Draw the content of `list` now, or once the pointer that is down in it is up. Only the newest `draw` of a list counts. */
export function drawWhenReleased(list, draw) {
  if (pressed && list.contains(pressed)) waiting.set(list, draw);
  else {
    waiting.delete(list);
    draw();
  }
}
