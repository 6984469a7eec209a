// Delays redraws of a list while the pointer is pressed in it, because a click needs the same element at press and
// release.

let pressTarget = null;
const delayed = new Map(); // list -> its newest draw function

addEventListener("pointerdown", (event) => (pressTarget = event.target), { capture: true });
for (const end of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(end, () => setTimeout(onRelease, 0), { capture: true }); // after the click event
}

function onRelease() {
  pressTarget = null;
  const draws = [...delayed.values()];
  delayed.clear();
  for (const draw of draws) draw();
}

/** Draw the content of `list` now, or when the pointer is released. Only the newest `draw` of a list runs. */
export function drawWhenReleased(list, draw) {
  if (pressTarget && list.contains(pressTarget)) delayed.set(list, draw);
  else {
    delayed.delete(list);
    draw();
  }
}
