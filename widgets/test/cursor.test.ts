import assert from "node:assert/strict";
import { test } from "node:test";
import { placeOf, timeAt } from "../src/cursor.ts";

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
