// How states and figures of upstreams are written.

import { figure } from "../dom.js";

/** The look of a badge by state. */
export const LOOKS = { ready: "good", connecting: "info", degraded: "bad", disabled: "" };

const NAMES = { ready: "Ready", connecting: "Connecting", degraded: "Down", disabled: "Disabled" };

/** The state in one word. */
export const upstreamState = ({ state }) => NAMES[state] ?? state;

/** A time in milliseconds. */
export const ms = (value) => (value === null || value === undefined ? "–" : value >= 1_000 ? `${figure(value / 1_000)} s` : `${figure(value)} ms`);

/** Bytes in the unit that fits. */
export const size = (bytes) => (bytes >= 2 ** 30 ? `${figure(bytes / 2 ** 30)} GiB` : `${figure(bytes / 2 ** 20)} MiB`);
