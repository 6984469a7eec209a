// Line charts on a canvas, with values in the legend and colors of the theme. Hover, or focus and use the arrow keys, to
// read an earlier point; click it, drag over a period, or press Enter to select it.

import { color, element, figure, write } from "../dom.js";

const LEFT = 54;
const RIGHT = 10;
const NARROW = 240; // narrower plots have the limit of the y axis above, instead of labels beside
const TOP = 14;
const BOTTOM = 20;
const COUNTED = 240; // longer charts show times of day instead of seconds
const DRAGGED_PX = 5; // shorter movements are clicks
/** @type {Record<string, number[]>} */
const DASHES = { solid: [], dashed: [6, 4], dotted: [1.5, 3.5] };

/** Format a value without a unit. @param {number} value @param {boolean} [axis] */
const plainNumber = (value, axis) => (axis ? String(Number(value.toPrecision(3))) : figure(value));

/** Round up to 1, 2, 2.5, or 5 times a power of ten. @param {number} value */
function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 2.5, 5].find((each) => each * power >= value * 0.999) ?? 10);
}

/** Resize a canvas to its box in device pixels, and return its context. @param {HTMLCanvasElement} canvas */
function prepare(canvas) {
  const ratio = devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  const wide = Math.round(width * ratio);
  const high = Math.round(height * ratio);
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")); // no other kind of context was requested
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** @type {Set<LineChart>} */
const charts = new Set();
/** @type {{since: number, until: number} | null} */
let marked = null; // the selected period, in all charts
/** @type {(...given: any[]) => void} */
let picked = () => {};

/**
 * `pick(since, until)` is called when a period is selected, in seconds since 1970.
 *
 * @param {(since: number, until: number) => void} pick
 */
export const onPick = (pick) => (picked = pick);

/** Mark a period in all charts; null clears it. @param {{since: number, until: number} | null} time */
export function markTime(time) {
  marked = time;
  redraw();
}
const redraw = () => charts.forEach((chart) => chart.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("millstream-theme", redraw);
const resized = new ResizeObserver(redraw);
const hours = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

/** Return the axis label of a time. @param {number} ago @param {number} at @param {number} seconds */
function when(ago, at, seconds) {
  if (ago <= 0) return "now";
  return seconds <= COUNTED ? `−${Math.round(ago)} s` : hours.format(at * 1_000);
}

/** @typedef {{name: string, short?: string, color: string, dash?: "dashed" | "dotted", fill?: boolean}} Series */
/** @typedef {(value: number) => number} Scale */

export class LineChart {
  #canvas;
  #name;
  #title;
  #format;
  #series;
  #atLeast;
  /** @type {number[]} */
  #times = [];
  /** @type {Array<Array<number | null>>} */
  #values = [];
  /** @type {Array<{item: HTMLElement, value: HTMLElement}>} */
  #told = [];
  #seconds = 60;
  #step = 10;
  #until = 0;
  /** @type {number | null} the marked point, counted from the end */
  #at = null;
  #top = 0;
  #left = LEFT;

  /**
   * @param {HTMLElement} place container of the title, the legend, and the canvas
   * @param {{name: string, says?: string, format?: (value: number, axis?: boolean) => string, series: Series[], atLeast?: number}} options
   *   `says` is the long title; `format` adds the unit; colors are tokens; `atLeast` is the minimum of the y axis's
   *   upper limit
   */
  constructor(place, { name, format = plainNumber, series, says = name, atLeast = 1 }) {
    this.#name = name;
    this.#format = format;
    this.#series = series;
    this.#atLeast = atLeast;
    this.#title = element("h2", { title: says }, name);
    this.#canvas = element("canvas", { className: "chart", tabIndex: 0, role: "img", "aria-label": name });
    const legend = element("ul", { className: "legend", "aria-hidden": "true" });
    for (const each of series) {
      const value = element("span", "legend-value", "–");
      const swatch = element("span", `swatch ${each.dash ?? "solid"}`);
      swatch.style.color = `var(${each.color})`;
      const item = element(
        "li",
        { title: each.name },
        swatch,
        element("span", "legend-name", each.short ?? each.name),
        value
      );
      legend.append(item);
      this.#told.push({ item, value });
    }
    place.replaceChildren(element("div", "plot-head", this.#title, legend), this.#canvas);
    this.#follow();
    resized.observe(this.#canvas);
    charts.add(this);
  }

  /** Change the title, and the long one. @param {string} name @param {string} [says] */
  rename(name, says = name) {
    this.#name = name;
    write(this.#title, name);
    this.#title.title = says;
  }

  /** Show or hide a series. @param {number} index @param {boolean} there */
  offer(index, there) {
    this.#told[index].item.hidden = !there;
  }

  /**
   * Replace the data.
   *
   * @param {{times: number[], until: number, seconds: number, step: number}} axis `times` are the ends of the points in
   *   seconds, oldest first, and `step` is how long each of them is
   * @param {Array<Array<number | null>>} columns one for each series
   */
  show({ times, until, seconds, step }, columns) {
    if (seconds !== this.#seconds) this.#top = 0;
    this.#times = times;
    this.#values = columns;
    this.#until = until;
    this.#seconds = seconds;
    this.#step = step;
    this.mark(this.#at); // there may be fewer points
  }

  draw() {
    const { pen, width, height } = prepare(this.#canvas);
    const left = width < NARROW ? RIGHT : LEFT;
    this.#left = left;
    if (width < left + RIGHT + 20) return;
    const { top, step } = this.#scale(height);
    /** @param {number} t */
    const x = (t) => left + (1 - (this.#until - t) / this.#seconds) * (width - left - RIGHT);
    /** @param {number} value */
    const y = (value) => TOP + (1 - value / top) * (height - TOP - BOTTOM);
    pen.font = `11px ${getComputedStyle(this.#canvas).fontFamily}`;
    this.#axes(pen, { width, height, top, step, x, y });
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, width - left - RIGHT, height);
    pen.clip();
    if (marked) {
      pen.fillStyle = color("--accent-soft");
      pen.fillRect(x(marked.since), TOP, Math.max(2, x(marked.until) - x(marked.since)), height - BOTTOM - TOP);
      pen.fillStyle = color("--accent");
      for (const edge of [marked.since, marked.until]) pen.fillRect(x(edge) - 0.5, TOP, 1, height - BOTTOM - TOP);
    }
    this.#series.forEach((series, index) => this.#line(pen, series, index, { x, y, floor: height - BOTTOM }));
    pen.restore();
    this.#cross(pen, { x, y, floor: height - BOTTOM });
    this.#tell();
  }

  /**
   * Return the scale of the y axis. Its limit shrinks only by half or more, to keep the axis readable.
   *
   * @param {number} height
   */
  #scale(height) {
    const values = this.#values.flat().filter((value) => value != null);
    const most = Math.max(this.#atLeast, ...values) * 1.05;
    const lines = height > 150 ? 4 : 2;
    const fitting = niceStep(most / lines);
    const wanted = Math.ceil(most / fitting) * fitting;
    if (wanted > this.#top || wanted < this.#top / 2) this.#top = wanted;
    const step = niceStep(this.#top / lines);
    return { step, top: Math.ceil(this.#top / step - 1e-9) * step };
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {{width: number, height: number, top: number, step: number, x: Scale, y: Scale}} plot
   */
  #axes(pen, { width, height, top, step, x, y }) {
    pen.lineWidth = 1;
    pen.strokeStyle = color("--line");
    pen.fillStyle = color("--text-soft");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const narrow = this.#left !== LEFT;
    for (let value = 0; value <= top + step / 2; value += narrow ? top : step) {
      const level = Math.round(y(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(this.#left, level);
      pen.lineTo(width - RIGHT, level);
      pen.stroke();
      const label = this.#format(Number(value.toPrecision(6)), true);
      if (!narrow) pen.fillText(label, LEFT - 6, level);
      else if (value) pen.fillText(label, width - RIGHT, level - 7);
    }
    pen.textBaseline = "alphabetic";
    const marks = width > 380 ? 4 : width > 250 ? 2 : 1;
    for (let mark = 0; mark <= marks; mark += 1) {
      const ago = this.#seconds * (1 - mark / marks);
      pen.textAlign = mark === 0 ? "left" : mark === marks ? "right" : "center";
      if (mark < marks && width - this.#left - RIGHT < 90) continue; // no space for two labels
      pen.fillText(when(ago, this.#until - ago, this.#seconds), x(this.#until - ago), height - 4);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Series} series
   * @param {number} index
   * @param {{x: Scale, y: Scale, floor: number}} plot
   */
  #line(pen, series, index, { x, y, floor }) {
    pen.strokeStyle = pen.fillStyle = color(series.color);
    pen.lineWidth = series.dash ? 1.5 : 2;
    pen.lineJoin = "round";
    pen.setLineDash(DASHES[series.dash ?? "solid"]);
    for (const run of this.#runs(index)) {
      pen.beginPath();
      run.forEach(([t, value], at) => (at ? pen.lineTo(x(t), y(value)) : pen.moveTo(x(t), y(value))));
      pen.stroke();
      if (run.length === 1 && run[0][1] > 0) this.#dot(pen, x(run[0][0]), y(run[0][1]), 3);
      if (!series.fill) continue;
      pen.lineTo(x(run[run.length - 1][0]), floor);
      pen.lineTo(x(run[0][0]), floor);
      pen.globalAlpha = 0.12;
      pen.fill();
      pen.globalAlpha = 1;
    }
    pen.setLineDash([]);
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} x @param {number} y @param {number} radius */
  #dot(pen, x, y, radius) {
    pen.beginPath();
    pen.arc(x, y, radius, 0, 7);
    pen.fill();
  }

  /** Return the runs of a series between missing values. @param {number} index */
  #runs(index) {
    /** @type {Array<Array<[number, number]>>} */
    const runs = [];
    /** @type {Array<[number, number]> | null} */
    let run = null;
    this.#times.forEach((t, place) => {
      const value = this.#values[index]?.[place] ?? null;
      if (value === null) run = null;
      else if (run) run.push([t, value]);
      else {
        run = [[t, value]];
        runs.push(run);
      }
    });
    return runs;
  }

  #place() {
    return this.#at === null ? this.#times.length - 1 : this.#times.length + this.#at;
  }

  /** @param {CanvasRenderingContext2D} pen @param {{x: Scale, y: Scale, floor: number}} plot */
  #cross(pen, { x, y, floor }) {
    if (this.#at === null || !this.#times.length) return;
    const place = this.#place();
    const at = x(this.#times[place]);
    pen.strokeStyle = color("--line-strong");
    pen.beginPath();
    pen.moveTo(at, TOP);
    pen.lineTo(at, floor);
    pen.stroke();
    this.#series.forEach((series, index) => {
      const value = this.#values[index]?.[place] ?? null;
      if (value === null) return;
      pen.fillStyle = color(series.color);
      this.#dot(pen, at, y(value), 3.5);
    });
  }

  /** Show the values of the newest or the hovered point in the legend. */
  #tell() {
    const place = this.#place();
    const told = this.#series.flatMap((series, index) => {
      const value = this.#values[index]?.[place] ?? null;
      const text = value === null ? "–" : this.#format(value);
      write(this.#told[index].value, text);
      return this.#told[index].item.hidden ? [] : [`${series.name} ${value === null ? "unknown" : text}`];
    });
    const ago = this.#at === null ? 0 : this.#until - this.#times[place];
    const moment =
      this.#at === null
        ? "now"
        : this.#seconds <= COUNTED
          ? `${Math.round(ago)} seconds ago`
          : `at ${hours.format(this.#times[place] * 1_000)}`;
    this.#canvas.setAttribute(
      "aria-label",
      this.#times.length ? `${this.#name}, ${moment}: ${told.join(", ")}` : `${this.#name}: no data yet`
    );
  }

  /** Select a point by pointer or arrow keys, in all charts, counted from the end. */
  #follow() {
    const canvas = this.#canvas;
    /** @type {PointerEvent | null} where the pointer went down */
    let from = null;
    /** @param {MouseEvent} event */
    const timeAt = (event) => {
      const { left, width } = canvas.getBoundingClientRect();
      return this.#until - (1 - (event.clientX - left - this.#left) / (width - this.#left - RIGHT)) * this.#seconds;
    };
    /** @param {MouseEvent} event */
    const dragged = (event) => from && Math.abs(event.clientX - from.clientX) > DRAGGED_PX;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.#times.length) return;
      from = event;
      if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const t = timeAt(event);
      if (from && dragged(event)) markTime(this.#whole(timeAt(from), t));
      let best = -1;
      this.#times.forEach((each, place) => {
        if (best < 0 || Math.abs(each - t) < Math.abs(this.#times[best] - t)) best = place;
      });
      choose(best < 0 ? null : best - this.#times.length);
    });
    canvas.addEventListener("pointerup", (event) => {
      if (!from) return;
      const time = this.#whole(timeAt(dragged(event) ? from : event), timeAt(event));
      from = null;
      picked(time.since, time.until);
    });
    canvas.addEventListener("pointercancel", () => (from = null)); // the finger scrolls the page
    canvas.addEventListener("pointerleave", () => choose(null));
    canvas.addEventListener("blur", () => choose(null));
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && this.#times.length) {
        event.preventDefault();
        const until = this.#times[Math.max(0, this.#place())];
        return picked(until - this.#step, until);
      }
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move || !this.#times.length) return;
      event.preventDefault();
      choose(Math.max(-this.#times.length, Math.min(-1, (this.#at ?? -1) + move)));
    });
  }

  /** Extend a period to whole points, at least the nearest one. @param {number} one @param {number} other */
  #whole(one, other) {
    const [low, high] = [Math.min(one, other), Math.max(one, other)];
    const inside = this.#times.filter((end) => end > low && end - this.#step < high);
    const nearest = this.#times.reduce(
      (best, end) => (Math.abs(end - high) < Math.abs(best - high) ? end : best),
      this.#times[0]
    );
    const ends = high - low < 1e-6 || !inside.length ? [nearest] : inside;
    return { since: Math.floor(ends[0] - this.#step), until: Math.ceil(ends[ends.length - 1]) };
  }

  /** Mark a point, counted from the end; null clears it. @param {number | null} at */
  mark(at) {
    this.#at = at !== null && -at > this.#times.length ? null : at;
    this.draw();
  }
}

/** @param {number | null} at */
function choose(at) {
  for (const chart of charts) chart.mark(at);
}
