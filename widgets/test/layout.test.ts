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
  const drawn = traces(view, span([1, 2]), ["p50", "p95"], 10);
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

test("a panel of times is in ms, s or min by the highest that it shows, its lines and marks too", () => {
  const drawn = (top: number, at: number[]) => {
    const { title, yaxis } = layout(view, top) as { title: { text: string }; yaxis: { range: number[] } };
    return [title.text, yaxis.range[1], traces(view, span(at), ["p50", "p95"], top)[0]!["y"], (markTrace(view, top)["y"] as number[])[0]];
  };
  assert.deepEqual(drawn(900, [450]), ["Time to first token (ms)", 900, [450], 900]);
  assert.deepEqual(drawn(25_000, [12_500, NaN]), ["Time to first token (s)", 25, [12.5, null], 25]);
  assert.deepEqual(drawn(120_000, [60_000]), ["Time to first token (min)", 2, [1], 2]);
  assert.equal((layout({ ...view, panel: { ...panel, unit: "tokens/s" } }, 25_000) as { title: { text: string } }).title.text, "Time to first token (tokens/s)");
});

test("no axis is asked to write a number with an exponent", () => {
  const { yaxis } = layout(view, 10) as { yaxis: { tickformat: string } };
  assert.match(yaxis.tickformat, /r$/);
});

test("an axis of later times is labelled by the clock, with as many labels as there are times", () => {
  const late = { ...view, now: 3700, window: 120 };
  const { xaxis } = layout(late, 10) as { xaxis: { tickvals: number[]; ticktext: string[]; title: { text: string } } };
  assert.deepEqual(xaxis.tickvals, [3600, 3630, 3660, 3690]);
  assert.deepEqual(xaxis.ticktext, ["1:00:00", "1:00:30", "1:01:00", "1:01:30"]);
  assert.equal(xaxis.title.text, "time (h:min:s)");
  const minutes = layout({ ...late, now: 300 }, 10) as { xaxis: { title: { text: string } } };
  assert.equal(minutes.xaxis.title.text, "time (min:s)");
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
  assert.equal(reading(panel, ["p95", "p50"], [1234.5, 0.126]), "p50: 0.13 ms\np95: 1.23 s");
  assert.equal(reading(panel, ["p50", "p95"], [Number.NaN, 45.67]), "p95: 45.7 ms");
  assert.equal(reading({ ...panel, unit: "tokens/s" }, ["p50", "p95"], [12_345.6, 45.67]), "p50: 12,346\np95: 45.7");
  assert.equal(reading(panel, ["p50", "p95"], undefined), "");
});
