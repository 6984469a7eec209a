// Runs the TypeScript SDK's end-to-end suite with wire.ts in the place of its helper. SUITE is the folder test/e2e.

import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const SUITE = process.env.SUITE;
const WIRE = join(dirname(fileURLToPath(import.meta.url)), "wire.ts");
const HELPER = join(SUITE, "helpers", "index.ts");
const SECONDS = Number(process.env.SECONDS);

const { default: suite } = await import(pathToFileURL(join(SUITE, "vitest.config.js")).href);

/** Lets scenarios import wire.ts, and wire.ts import what the helper can. */
const replaceHelper = {
    name: "replace-helper",
    enforce: "pre",
    async resolveId(source, importer) {
        if (importer === WIRE) return this.resolve(source, HELPER, { skipSelf: true });
        return /\/helpers(\/index)?$/.test(source) ? WIRE : null;
    },
    transform(code, id) {
        return id.endsWith("/helpers/verifies.ts") ? code.replace("15_000", `${SECONDS}_000`) : null;
    }
};

export default {
    ...suite,
    root: SUITE,
    plugins: [replaceHelper, ...suite.plugins],
    test: { ...suite.test, testTimeout: SECONDS * 1000 }
};
