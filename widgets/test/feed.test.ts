import assert from "node:assert/strict";
import { test } from "node:test";
import { ACK_MS, Feed, LONGEST_SILENCE_MS, SILENCE_MS } from "../src/feed.ts";
import type { Delta, Snapshot } from "../src/messages.ts";

const delta = (seq: number): Delta => ({ kind: "delta", seq });
const snapshot = (seq: number) => ({ kind: "snapshot", seq }) as Snapshot;

function started(): Feed {
  const feed = new Feed();
  assert.deepEqual(feed.hello(0), { kind: "hello" });
  assert.deepEqual(feed.accept(snapshot(5), 1), { take: true, reply: { kind: "ack", seq: 5 } });
  return feed;
}

test("deltas before the first snapshot are not taken in", () => {
  const feed = new Feed();
  feed.hello(0);
  assert.deepEqual(feed.accept(delta(4), 1), { take: false });
});

test("deltas in order are taken in, and acknowledged now and then", () => {
  const feed = started();
  assert.deepEqual(feed.accept(delta(6), 200), { take: true });
  const later = feed.accept(delta(7), 2 + ACK_MS);
  assert.deepEqual(later, { take: true, reply: { kind: "ack", seq: 7 } });
});

test("a gap asks for a snapshot, once, and the snapshot heals it", () => {
  const feed = started();
  assert.deepEqual(feed.accept(delta(8), 400), { take: false, reply: { kind: "hello" } });
  assert.deepEqual(feed.accept(delta(9), 600), { take: false });
  assert.equal(feed.accept(snapshot(10), 700).take, true);
  assert.equal(feed.accept(delta(11), 800).take, true);
});

test("a delta that comes twice asks for a snapshot instead of drawing twice", () => {
  const feed = started();
  feed.accept(delta(6), 200);
  assert.equal(feed.accept(delta(6), 210).take, false);
});

test("a silent kernel is asked again, less and less often", () => {
  const feed = started();
  assert.equal(feed.tick(SILENCE_MS - 10), undefined);
  let now = 1;
  let pause = SILENCE_MS;
  for (let i = 0; i < 8; i++) {
    assert.equal(feed.tick(now + pause - 1), undefined);
    now += pause;
    assert.deepEqual(feed.tick(now), { kind: "hello" });
    pause = Math.min(2 * pause, LONGEST_SILENCE_MS);
  }
  assert.equal(pause, LONGEST_SILENCE_MS);
});

test("an unanswered hello is repeated although deltas for another view keep coming", () => {
  const feed = new Feed();
  feed.hello(0);
  feed.accept(delta(3), SILENCE_MS - 100);
  assert.deepEqual(feed.tick(SILENCE_MS), { kind: "hello" });
});

test("figures count as live only while they come", () => {
  const feed = started();
  assert.equal(feed.live(100), true);
  assert.equal(feed.live(1 + SILENCE_MS), false);
});

test("a silence is counted from the last figure, or from the first question where none ever came", () => {
  const feed = started();
  feed.accept(delta(6), 2000);
  assert.equal(feed.silentFor(6500), 4);
  feed.hello(8000); // a question is no answer
  assert.equal(feed.silentFor(9100), 7);
  const mute = new Feed();
  mute.hello(1000);
  mute.hello(4000);
  assert.equal(mute.silentFor(6000), 5);
});
