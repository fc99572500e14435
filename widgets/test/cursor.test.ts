import assert from "node:assert/strict";
import { test } from "node:test";
import { placeOf, SHORTEST_S, spanOn, timeAt, zoomed } from "../src/cursor.ts";

const scale = { range: [100, 130] as [number, number], width: 370 };

test("a place on a panel is a time, and the time is at that place", () => {
  assert.equal(timeAt(56, scale), 100);
  assert.equal(timeAt(206, scale), 115);
  assert.equal(placeOf(115, scale), 206);
});

test("left and right of the plot is its first and its last time", () => {
  assert.equal(timeAt(3, scale), 100);
  assert.equal(timeAt(369, scale), 130);
});

test("a zoom by keys keeps the cursor where it is, and ends at the shortest span", () => {
  assert.deepEqual(zoomed([100, 140], 110, 0.5), [105, 125]);
  assert.deepEqual(zoomed([105, 125], 110, 2), [100, 140]);
  let range: [number, number] = [100, 140];
  for (let i = 0; i < 20; i++) range = zoomed(range, 110, 0.5);
  assert.ok(Math.abs(range[1] - range[0] - SHORTEST_S) < 1e-9);
  assert.deepEqual(zoomed([0, 20], 10, 2), [0, 30]);
});

test("a cursor is on no panel that shows another time, and a selection ends where a panel does", () => {
  assert.deepEqual(spanOn(115, 115, scale), [206, 206]);
  assert.equal(spanOn(99, 99, scale), undefined);
  assert.equal(spanOn(110, 131, scale), undefined);
  assert.deepEqual(spanOn(90, 115, scale), [56, 206]);
});
