// Formats of upstreams' states and figures.

import { figure } from "../dom.js";

/** Style of a badge by state. */
export const LOOKS = { ready: "good", connecting: "info", degraded: "bad", disabled: "" };

const NAMES = { ready: "Ready", connecting: "Connecting", degraded: "Down", disabled: "Disabled" };

/** Return the state in one word. */
export const upstreamState = ({ state }) => NAMES[state] ?? state;

/** Format a duration in milliseconds. */
export const ms = (value) =>
  value === null || value === undefined ? "–" : value >= 1_000 ? `${figure(value / 1_000)} s` : `${figure(value)} ms`;

/** Format a size in MiB or GiB. */
export const size = (bytes) => (bytes >= 2 ** 30 ? `${figure(bytes / 2 ** 30)} GiB` : `${figure(bytes / 2 ** 20)} MiB`);
