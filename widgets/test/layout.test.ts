import assert from "node:assert/strict";
import { test } from "node:test";
import { ceiling, describe, layout, markTrace, range, reading, traces, type View } from "../src/layout.ts";
import type { Mark, Panel } from "../src/messages.ts";
import { isDark, PRINT } from "../src/theme.ts";

const panel: Panel = {
  id: "ttft",
  title: "Time to first token",
  unit: "ms",
  lines: [{ column: "p50", label: "p50" }, { column: "p95", label: "p95" }],
  step: false,
  total: null,
  brief: true,
};
const mark: Mark = {
  id: 1,
  t: 50,
  source: "slider",
  step: 812,
  changed: { max_num_seqs: [32, 8], max_active: [null, 4] },
  clamped: ["max_active"],
  satisfied: { max_num_seqs: 830 },
};
const view: View = { panel, theme: PRINT, width: 400, window: 30, now: 70, marks: [mark] };
const span = (values: number[]) => ({
  times: Float64Array.from(values, (_, i) => i),
  columns: [Float32Array.from(values), Float32Array.from(values, (v) => 2 * v)],
});

test("a panel draws one trace per line of its table, each from its own column", () => {
  const drawn = traces(view, span([1, 2]), ["p50", "p95"]);
  assert.deepEqual(drawn.map((trace) => [trace["name"], trace["y"]]), [["p50", [1, 2]], ["p95", [2, 4]]]);
});

test("a knob change in the window is a line on the panel and a point to hover over", () => {
  const shapes = layout(view, 10)["shapes"] as { x0: number; yref: string }[];
  assert.deepEqual(shapes.map((shape) => [shape.x0, shape.yref]), [[50, "paper"]]);
  assert.deepEqual(markTrace(view, 10)["x"], [50]);
});

test("a knob change that has left the window is not drawn", () => {
  const later = { ...view, now: 200 };
  assert.deepEqual(layout(later, 10)["shapes"], []);
  assert.deepEqual(markTrace(later, 10)["x"], []);
});

test("a mark says what a knob was, what it became, at which step, by whom, and what was clamped", () => {
  assert.equal(
    describe(mark),
    "<b>max_num_seqs</b>: 32 → 8, kept by all from step 830<br>" +
      "<b>max_active</b>: none → 4, held at its ceiling<br>by slider at engine step 812",
  );
});

test("text from outside cannot become markup in a mark", () => {
  assert.ok(!describe({ ...mark, source: "<img src=x>" }).includes("<img"));
});

test("axes name their unit", () => {
  const drawn = layout(view, 10) as { title: { text: string }; xaxis: { title: { text: string } } };
  assert.equal(drawn.title.text, "Time to first token (ms)");
  assert.equal(drawn.xaxis.title.text, "time (s)");
});

test("the y axis starts at 0 and ends above the highest value, or at a device's total", () => {
  assert.equal(ceiling(span([]), panel, ["p50", "p95"]), 1);
  assert.ok(ceiling(span([5, NaN]), panel, ["p50", "p95"]) > 10);
  assert.equal(ceiling(span([5]), { ...panel, total: 16 }, ["p50", "p95"]), 16);
  assert.ok(ceiling(span([1]), { ...panel, total: 160 }, ["p50", "p95"]) < 3);
});

test("a young chart shows ten seconds, an old one its window", () => {
  assert.deepEqual(range({ ...view, now: 0.4 }), [0, 10]);
  assert.deepEqual(range({ ...view, now: 100 }), [70, 100]);
});

test("dark and light papers are told apart", () => {
  assert.equal(isDark("rgb(17, 17, 17)"), true);
  assert.equal(isDark("rgba(255, 255, 255, 1)"), false);
});

test("a span chosen on the page takes the window's place", () => {
  assert.deepEqual(range({ ...view, zoom: [12, 20] }), [12, 20]);
  assert.deepEqual(layout({ ...view, zoom: [12, 20] }, 10)["shapes"], []);
});

test("the cursor reads a panel's figures, and none that there is not", () => {
  assert.equal(reading(panel, ["p95", "p50"], [1234.5, 0.126]), "p50: 0.13\np95: 1,235");
  assert.equal(reading(panel, ["p50", "p95"], [Number.NaN, 45.67]), "p95: 45.7");
  assert.equal(reading(panel, ["p50", "p95"], undefined), "");
});
