// Bundles the two modules that the Python side ships: a loader of half a kilobyte, which travels
// in the widget's saved state, and the dashboard itself, which the loader asks the kernel for.
import { build } from "esbuild";

const outdir = process.argv[2] ?? "../src/llmserve/dashboard/static";

await build({
  entryPoints: ["src/dashboard.ts", "src/loader.ts"],
  outdir,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  logLevel: "warning",
});
