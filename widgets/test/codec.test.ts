import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { decode } from "../src/codec.ts";

// made by Python: tests/dashboard/test_codec.py holds the same figures and the same file together
const file = readFileSync(new URL("../../tests/dashboard/frame.bin", import.meta.url));
const view = new DataView(file.buffer, file.byteOffset, file.byteLength);

test("a frame made by Python reads back as the figures it was made from", () => {
  const frame = decode(view);
  assert.equal(frame.seq, 7);
  assert.equal(frame.rows, 3);
  assert.deepEqual([...frame.times], [0, 0.2, 123456.789]);
  assert.deepEqual(frame.columns.map((column) => [...column]), [[1, 2, 3], [NaN, -0.5, 16777216]]);
});

test("a frame that starts at an odd place of a larger buffer reads the same", () => {
  const moved = new Uint8Array(file.byteLength + 3);
  moved.set(file, 3);
  assert.deepEqual(decode(new DataView(moved.buffer, 3)), decode(view));
});

test("bytes of another kind or cut short are refused", () => {
  assert.throws(() => decode(new DataView(new ArrayBuffer(64))), /not a chart frame/);
  assert.throws(() => decode(new DataView(new ArrayBuffer(3))), /not a chart frame/);
  const cut = new DataView(file.buffer, file.byteOffset, file.byteLength - 1);
  assert.throws(() => decode(cut), /wrong length/);
});
