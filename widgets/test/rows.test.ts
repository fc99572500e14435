import assert from "node:assert/strict";
import { test } from "node:test";
import type { Frame } from "../src/codec.ts";
import { Rows } from "../src/rows.ts";

function frame(...times: number[]): Frame {
  return {
    seq: 0,
    rows: times.length,
    times: Float64Array.from(times),
    columns: [Float32Array.from(times), Float32Array.from(times, (t) => -t)],
  };
}

test("rows come back in order, and only those since the time asked for", () => {
  const rows = new Rows(2, 10);
  rows.append(frame(1, 2, 3));
  rows.append(frame(4));
  const span = rows.since(2.5);
  assert.deepEqual([...span.times], [3, 4]);
  assert.deepEqual(span.columns.map((column) => [...column]), [[3, 4], [-3, -4]]);
  assert.equal(rows.last, 4);
});

test("beyond the capacity the oldest rows go, however many came at once", () => {
  const rows = new Rows(2, 4);
  for (let t = 0; t < 23; t++) rows.append(frame(t));
  assert.equal(rows.length, 4);
  assert.deepEqual([...rows.since(0).times], [19, 20, 21, 22]);
  rows.append(frame(30, 31, 32, 33, 34, 35));
  assert.deepEqual([...rows.since(0).times], [32, 33, 34, 35]);
  assert.deepEqual([...rows.since(0).columns[1]!], [-32, -33, -34, -35]);
});

test("an empty one has no rows and its last time is 0", () => {
  const rows = new Rows(2, 4);
  assert.equal(rows.since(0).times.length, 0);
  assert.equal(rows.last, 0);
});

test("the row at a time is the newest not later than it", () => {
  const rows = new Rows(2, 4);
  assert.equal(rows.at(5), undefined);
  for (let t = 0; t < 9; t++) rows.append(frame(t));
  assert.deepEqual(rows.at(6.5), [6, -6]);
  assert.deepEqual(rows.at(99), [8, -8]);
  assert.equal(rows.at(4.5), undefined);
});
