import assert from "node:assert/strict";
import { test } from "node:test";
import type { TapeMessage, TapeRowJson } from "../src/messages.ts";
import { stateOf } from "../src/requests.ts";
import { isStopped, shortId, Tape } from "../src/tape.ts";
import { ticks, Viewport } from "../src/viewport.ts";
import { life } from "../src/waterfall.ts";

const KINDS = ["prefill", "decode", "preempted", "waiting", "cap"];
const OPEN = 0xffffffff;
const row = (number: number, ended: number | null = null): TapeRowJson => [
  number, `r${number}`, "gold", 1, 40, 0, 1, 2, ended, ended === null ? null : "stop", 7, 0, 32,
];

/** Steps of half a second that begin at `first / 2`. */
function steps(first: number, count: number): DataView {
  const view = new DataView(new ArrayBuffer(32 * count));
  for (let i = 0; i < count; i++) {
    view.setFloat64(32 * i, (first + i) / 2, true);
    view.setFloat32(32 * i + 8, 0.5, true);
    view.setUint32(32 * i + 12, 100 + first + i, true);
  }
  return view;
}

function segments(...list: [number, number, number, string, number?, number?][]): DataView {
  const view = new DataView(new ArrayBuffer(20 * list.length));
  list.forEach(([request, first, last, kind, tokens = 1, kv = 0], i) => {
    [request, first, last].forEach((value, k) => view.setUint32(20 * i + 4 * k, value, true));
    view.setUint16(20 * i + 12, KINDS.indexOf(kind), true);
    view.setUint16(20 * i + 14, tokens, true);
    view.setUint32(20 * i + 16, kv, true);
  });
  return view;
}

const whole = (rows: TapeRowJson[], first = 0): TapeMessage => ({
  kind: "tape", seq: 1, whole: true, first, rows, kinds: KINDS, capacity: 1000,
});
const more = (seq: number, first: number, rows: TapeRowJson[] = []): TapeMessage => ({
  kind: "tape", seq, whole: false, first, rows,
});

function taken(): Tape {
  const tape = new Tape();
  tape.take(whole([row(0), row(1)]), steps(0, 4), segments([0, 0, 1, "prefill", 20], [0, 2, OPEN, "decode", 1, 40], [1, 1, OPEN, "cap"]));
  return tape;
}

test("a segment that is closed takes the place of itself while it was open", () => {
  const tape = taken();
  assert.equal(tape.take(more(2, 4), steps(4, 2), segments([0, 2, 4, "decode", 1, 40])), true);
  assert.deepEqual(tape.rows.get(0)!.segments.map((s) => [s.first, s.last]), [[0, 1], [2, 4]]);
});

test("a new segment ends an open one whose end was told by no step", () => {
  const tape = taken();
  tape.take(more(2, 4), steps(4, 1), segments([1, 4, OPEN, "prefill"]));
  assert.deepEqual(tape.rows.get(1)!.segments.map((s) => [s.first, s.last]), [[1, 3], [4, Infinity]]);
});

test("an end that comes after the next has begun finds its place before it", () => {
  const tape = taken();
  tape.take(more(2, 4), steps(4, 2), segments([0, 5, OPEN, "decode"]));
  tape.take(more(3, 6), steps(6, 1), segments([0, 2, 4, "decode"]));
  const last = tape.rows.get(0)!.segments.at(-1)!;
  assert.deepEqual([last.first, last.last], [5, Infinity]);
});

const aborted = (number: number, ended: number): TapeRowJson =>
  row(number, ended).map((value) => (value === "stop" ? "abort" : value)) as TapeRowJson;

test("a request that is told to have ended goes on in no step after its end", () => {
  const tape = taken();
  tape.take(more(2, 4, [aborted(0, 2.2), aborted(1, 2.2)]), steps(4, 6), segments());
  assert.deepEqual(tape.rows.get(0)!.segments.map((s) => [s.first, s.last]), [[0, 1], [2, 4]]); // step 4 began at 2.0
  assert.deepEqual(tape.rows.get(1)!.segments.map((s) => [s.first, s.last]), [[1, 4]]);
  assert.deepEqual(tape.visible(6, 10), []);
  tape.take(more(3, 10), steps(10, 1), segments([0, 2, 3, "decode", 1, 40]));
  assert.deepEqual(tape.rows.get(0)!.segments.map((s) => [s.first, s.last]), [[0, 1], [2, 3]]); // its end as the kernel knows it
});

test("what began and ended between two steps leaves nothing, and no late segment reopens an end", () => {
  const tape = taken();
  tape.take(more(2, 4, [row(2)]), steps(4, 0), segments([2, 4, OPEN, "waiting"]));
  assert.equal(tape.visible(4, 9).some((r) => r.number === 2), true);
  tape.take(more(3, 4, [aborted(2, 2)]), steps(4, 3), segments());
  tape.take(more(4, 7), steps(7, 1), segments([2, 7, OPEN, "cap"]));
  assert.deepEqual(tape.rows.get(2)!.segments, []);
  assert.equal(stateOf(tape.rows.get(2)!), "stopped");
});

test("only a request that was stopped before its reply was whole is marked as stopped", () => {
  const tape = taken();
  tape.take(more(2, 4, [aborted(0, 3), row(1, 3)]), steps(4, 1), segments());
  assert.deepEqual([...tape.rows.values()].map(isStopped), [true, false]);
});

test("a message that is missing is noticed, and the whole tape heals it", () => {
  const tape = taken();
  assert.equal(tape.take(more(3, 5), steps(5, 1), segments()), false);
  assert.equal(tape.take({ ...whole([row(0)]), seq: 9 }, steps(0, 6), segments()), true);
  assert.deepEqual([tape.first, tape.end, tape.rows.size], [0, 6, 1]);
});

test("only requests with something in the steps shown are visible, by arrival", () => {
  const tape = taken();
  assert.deepEqual(tape.visible(0, 1).map((r) => r.number), [0]);
  assert.deepEqual(tape.visible(0, 2).map((r) => r.number), [0, 1]);
  assert.equal(tape.segmentAt(tape.rows.get(1)!, 0), undefined);
  assert.equal(tape.segmentAt(tape.rows.get(0)!, 3)!.kv, 40);
});

test("the oldest steps and what ended in them are let go", () => {
  const tape = new Tape();
  tape.take({ ...whole([row(0, 1), row(1)]), capacity: 10 }, steps(0, 4), segments([0, 0, 1, "prefill"], [1, 0, OPEN, "decode"]));
  tape.take(more(2, 4), steps(4, 20), segments());
  assert.deepEqual([tape.first, tape.end], [14, 24]);
  assert.deepEqual([...tape.rows.keys()], [1]);
});

test("a life is its queue, its work and its stalls, and they fill it", () => {
  const tape = new Tape();
  tape.take(whole([row(0, 5)]), steps(2, 8), segments());
  tape.take({ ...whole([row(0, 5)], 2), seq: 2 }, steps(2, 8), segments([0, 3, 3, "prefill"], [0, 6, 8, "decode"]));
  const { start, end, spans, totals } = life(tape.rows.get(0)!, tape, 99);
  assert.deepEqual([start, end], [0, 5]);
  assert.deepEqual(spans.map((s) => [s.kind, s.start, s.end]), [
    ["queue", 0, 1], ["stall", 1, 1.5], ["prefill", 1.5, 2], ["stall", 2, 3], ["decode", 3, 4.5], ["stall", 4.5, 5],
  ]);
  assert.equal([...totals.values()].reduce((a, b) => a + b), 5);
});

test("a request that still waits has a queue up to now and nothing else", () => {
  const tape = new Tape();
  const waiting: TapeRowJson = [0, "r", "t", 0, 9, 3, null, null, null, null, null, 0, 0];
  tape.take(whole([waiting]), steps(0, 0), segments());
  assert.deepEqual(life(tape.rows.get(0)!, tape, 4.5).spans, [{ kind: "queue", start: 3, end: 4.5 }]);
  assert.equal(stateOf(tape.rows.get(0)!), "waiting");
});

test("a live view keeps the newest step at its edge, a moved one stays, and moving back is live", () => {
  const view = new Viewport();
  view.span = 100;
  assert.deepEqual(view.range(0, 500), [400, 500]);
  view.pan(-200, 500);
  assert.deepEqual(view.range(0, 600), [200, 300]);
  assert.equal(view.live, false);
  view.pan(1000, 600);
  assert.deepEqual(view.range(0, 650), [550, 650]);
});

test("zooming keeps the step under the pointer, within what is known", () => {
  const view = new Viewport();
  view.span = 100;
  view.range(0, 1000);
  view.pan(-500, 1000);
  view.zoom(0.5, 0.5, 1000);
  assert.deepEqual(view.range(0, 1000), [425, 475]);
  view.zoom(1e9, 0.5, 1000);
  assert.equal(view.span, 1000);
  view.zoom(1e-9, 0.5, 1000);
  assert.equal(view.span, 10);
});

test("an axis has round ticks, few enough to read", () => {
  assert.deepEqual(ticks(-50, 200, 4), [0, 100]);
  assert.deepEqual(ticks(1003, 1010, 20), [1003, 1004, 1005, 1006, 1007, 1008, 1009]);
  assert.ok(ticks(0, 10_000, 10).length <= 10);
});

test("what a request has in its KV grows with its steps, and what the cache gave counts", () => {
  const tape = new Tape();
  const message: TapeMessage = { kind: "tape", seq: 1, whole: true, first: 0, rows: [row(1)], kinds: KINDS, capacity: 100 };
  tape.take(message, steps(0, 9), segments([1, 0, 1, "cap"], [1, 2, 2, "prefill", 8, 0], [1, 3, 8, "decode", 1, 8]));
  const [held, prefill, decode] = tape.rows.get(1)!.segments;
  assert.equal(tape.stored(tape.rows.get(1)!, held!, 1), 0);
  assert.equal(tape.stored(tape.rows.get(1)!, prefill!, 2), 32 + 8);
  assert.equal(tape.stored(tape.rows.get(1)!, decode!, 5), 32 + 8 + 3);
});

test("a request's name in the margin is what tells it from others of the same start", () => {
  assert.equal(shortId("chatcmpl-4b1f09c2aa77-12"), "chatcmpl-12");
  assert.equal(shortId("cmpl-4b1f09c2aa77-12-3"), "cmpl-12-3");
  assert.equal(shortId("cell-7"), "cell-7");
  assert.equal(shortId("chatcmpl-0123456789abcdef0123456789abcdef"), "chatcmp…9abcdef");
});
