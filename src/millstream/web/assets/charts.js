// Line charts on a canvas: the last seconds on the x axis, a unit on the y axis, a legend that tells the values.
//
// A chart's colours are the page's variables, so that it is dark where the page is. Point at it, or focus it and use
// the arrow keys, to read the values of an earlier moment.

import { color, element, figure } from "./dom.js";

const LEFT = 46;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 22;
const DASHES = { solid: [], dashed: [6, 4], dotted: [1.5, 3.5] };

/** The smallest of 1, 2, 2.5, 5 times a power of ten that is at least this. */
function niceStep(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const factor = [1, 2, 2.5, 5, 10].find((each) => each * power >= value * 0.999);
  return factor * power;
}

/** Make a canvas as large as its box, in the pixels of the screen, and give what draws on it. */
function prepare(canvas) {
  const ratio = devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  const wide = Math.round(width * ratio);
  const high = Math.round(height * ratio);
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

const charts = new Set();
const redraw = () => charts.forEach((chart) => chart.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
const resized = new ResizeObserver((entries) => entries.forEach((entry) => entry.target.chart?.draw()));

export class LineChart {
  #canvas;
  #name;
  #unit;
  #series;
  #seconds;
  #atLeast;
  #samples = [];
  #values = [];
  #at = null;

  /**
   * @param place the element that gets the canvas and the legend
   * @param options name: what is shown, for screen readers; unit: behind each value; series: `{name, color, dash,
   *   fill}` with the name of a CSS variable as the color; seconds: length of the x axis; atLeast: the smallest top
   */
  constructor(place, { name, unit, series, seconds = 60, atLeast = 1 }) {
    this.#name = name;
    this.#unit = unit;
    this.#series = series;
    this.#seconds = seconds;
    this.#atLeast = atLeast;
    this.#canvas = element("canvas", { className: "chart", tabIndex: 0, role: "img", "aria-label": name });
    this.#canvas.chart = this;
    const legend = element("ul", { className: "legend", "aria-hidden": "true" });
    for (const each of series) {
      const value = element("span", { className: "legend-value" }, "–");
      const swatch = element("span", { className: `swatch ${each.dash ?? "solid"}` });
      swatch.style.color = `var(${each.color})`;
      legend.append(element("li", {}, swatch, each.name, value));
      this.#values.push(value);
    }
    place.replaceChildren(legend, this.#canvas);
    this.#follow();
    resized.observe(this.#canvas);
    charts.add(this);
  }

  /** Name a series anew, as when another thing is chosen to be shown. */
  rename(index, name) {
    this.#values[index].previousSibling.textContent = name;
    this.#series[index].name = name;
  }

  /** Replace everything: `samples` are `{t, values}` with `t` in seconds, oldest first. */
  show(samples) {
    this.#samples = samples;
    this.draw();
  }

  draw() {
    const { pen, width, height } = prepare(this.#canvas);
    if (width < LEFT + RIGHT + 20) return;
    const now = this.#samples.at(-1)?.t ?? 0;
    const style = getComputedStyle(this.#canvas);
    const { top, step } = this.#scale();
    const x = (t) => LEFT + (1 - (now - t) / this.#seconds) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / top) * (height - TOP - BOTTOM);
    pen.font = `12px ${style.fontFamily}`;
    this.#axes(pen, { width, height, top, step, y, line: color("--line"), ink: color("--text-soft") });
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT - RIGHT, height);
    pen.clip();
    this.#series.forEach((series, index) => this.#line(pen, series, index, { x, y, color, floor: height - BOTTOM }));
    pen.restore();
    this.#cross(pen, { x, y, color, floor: height - BOTTOM });
    this.#tell();
  }

  #scale() {
    const values = this.#samples.flatMap((sample) => sample.values).filter((value) => value !== null);
    const most = Math.max(this.#atLeast, ...values) * 1.05;
    const step = niceStep(most / 4);
    return { step, top: Math.ceil(most / step) * step };
  }

  #axes(pen, { width, height, top, step, y, line, ink }) {
    pen.lineWidth = 1;
    pen.strokeStyle = line;
    pen.fillStyle = ink;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const digits = step >= 1 ? (step % 1 ? 1 : 0) : Math.ceil(-Math.log10(step));
    for (let value = 0; value <= top + step / 2; value += step) {
      const level = Math.round(y(value)) + 0.5;
      pen.beginPath();
      pen.moveTo(LEFT, level);
      pen.lineTo(width - RIGHT, level);
      pen.stroke();
      const text = value >= 10_000 ? `${+(value / 1_000).toFixed(1)}k` : value.toFixed(digits);
      pen.fillText(text, LEFT - 8, level);
    }
    pen.textBaseline = "alphabetic";
    const marks = width > 360 ? 4 : 2;
    for (let mark = 0; mark <= marks; mark += 1) {
      const past = this.#seconds * (1 - mark / marks);
      pen.textAlign = mark === 0 ? "left" : mark === marks ? "right" : "center";
      pen.fillText(past ? `−${past} s` : "now", LEFT + (mark / marks) * (width - LEFT - RIGHT), height - 4);
    }
  }

  #line(pen, series, index, { x, y, color, floor }) {
    pen.strokeStyle = pen.fillStyle = color(series.color);
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.setLineDash(DASHES[series.dash ?? "solid"]);
    for (const run of this.#runs(index)) {
      pen.beginPath();
      run.forEach(([t, value], at) => (at ? pen.lineTo(x(t), y(value)) : pen.moveTo(x(t), y(value))));
      if (run.length === 1) pen.lineTo(x(run[0][0]) + 2, y(run[0][1]));
      pen.stroke();
      if (!series.fill) continue;
      pen.lineTo(x(run.at(-1)[0]), floor);
      pen.lineTo(x(run[0][0]), floor);
      pen.globalAlpha = 0.12;
      pen.fill();
      pen.globalAlpha = 1;
    }
    pen.setLineDash([]);
  }

  /** The stretches of a series without a missing value. */
  #runs(index) {
    const runs = [];
    let open = false;
    for (const { t, values } of this.#samples) {
      const value = values[index] ?? null;
      if (value !== null && !open) runs.push([]);
      if (value !== null) runs.at(-1).push([t, value]);
      open = value !== null;
    }
    return runs;
  }

  #cross(pen, { x, y, color, floor }) {
    const sample = this.#at === null ? null : this.#samples.at(this.#at);
    if (!sample) return;
    pen.strokeStyle = color("--line-strong");
    pen.beginPath();
    pen.moveTo(x(sample.t), TOP);
    pen.lineTo(x(sample.t), floor);
    pen.stroke();
    this.#series.forEach((series, index) => {
      if (sample.values[index] === null || sample.values[index] === undefined) return;
      pen.fillStyle = color(series.color);
      pen.beginPath();
      pen.arc(x(sample.t), y(sample.values[index]), 3.5, 0, 7);
      pen.fill();
    });
  }

  #tell() {
    const sample = this.#samples.at(this.#at ?? -1);
    const told = this.#series.map((series, index) => {
      const value = sample?.values[index] ?? null;
      const text = value === null ? "–" : `${figure(value)} ${this.#unit}`;
      this.#values[index].textContent = text;
      return `${series.name} ${value === null ? "unknown" : text}`;
    });
    const when = this.#at === null || !sample ? "now" : `${Math.round(this.#samples.at(-1).t - sample.t)} seconds ago`;
    this.#canvas.setAttribute("aria-label", sample ? `${this.#name}, ${when}: ${told.join(", ")}` : `${this.#name}: no data yet`);
  }

  /** Choose a moment by pointer or arrow keys. `#at` counts from the end, so that it stays a moment's distance. */
  #follow() {
    const canvas = this.#canvas;
    const choose = (at) => {
      this.#at = at;
      this.draw();
    };
    canvas.addEventListener("pointermove", (event) => {
      const { left, width } = canvas.getBoundingClientRect();
      const share = (event.clientX - left - LEFT) / (width - LEFT - RIGHT);
      const t = (this.#samples.at(-1)?.t ?? 0) - (1 - share) * this.#seconds;
      const distance = this.#samples.map((sample) => Math.abs(sample.t - t));
      choose(distance.length ? distance.indexOf(Math.min(...distance)) - distance.length : null);
    });
    canvas.addEventListener("pointerleave", () => choose(null));
    canvas.addEventListener("blur", () => choose(null));
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      choose(Math.max(-this.#samples.length, Math.min(-1, (this.#at ?? -1) + move)) || null);
    });
  }
}

/** A line without axes, beside a number that says more: the newest values of this many at the right. */
export function spark(canvas, values, length, variable = "--accent") {
  const { pen, width, height } = prepare(canvas);
  if (values.length < 2 || !width) return;
  const top = Math.max(...values) || 1;
  const before = Math.max(0, length - values.length);
  pen.strokeStyle = color(variable);
  pen.lineWidth = 1.5;
  pen.lineJoin = "round";
  pen.beginPath();
  values.forEach((value, index) => {
    const point = [1 + ((before + index) / (before + values.length - 1)) * (width - 2), height - 2 - (value / top) * (height - 4)];
    if (index) pen.lineTo(...point);
    else pen.moveTo(...point);
  });
  pen.stroke();
}
