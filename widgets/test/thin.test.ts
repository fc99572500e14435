import assert from "node:assert/strict";
import { test } from "node:test";
import { thin } from "../src/thin.ts";

const times = (n: number) => Float64Array.from({ length: n }, (_, i) => i);

test("few points stay as they are, and a missing value is a gap", () => {
  const points = thin(times(3), Float32Array.of(1, NaN, 3), 400);
  assert.deepEqual(points, { x: [0, 1, 2], y: [1, null, 3] });
});

test("many points become few, in order, and no peak is lost", () => {
  const values = Float32Array.from({ length: 3000 }, (_, i) => (i === 1234 ? 99 : i === 2001 ? -99 : i % 7));
  const points = thin(times(3000), values, 400);
  assert.ok(points.x.length <= 400, `${points.x.length} points`);
  assert.equal(points.y[points.x.indexOf(1234)], 99);
  assert.equal(points.y[points.x.indexOf(2001)], -99);
  assert.deepEqual(points.x, points.x.toSorted((a, b) => a - b));
});

test("a long gap stays a gap when points are thinned", () => {
  const values = Float32Array.from({ length: 3000 }, (_, i) => (i > 1000 && i < 2000 ? NaN : 1));
  const points = thin(times(3000), values, 400);
  assert.ok(points.x.every((x, i) => (points.y[i] === null) === (x > 1000 && x < 2000)));
});
