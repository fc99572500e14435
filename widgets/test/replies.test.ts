import assert from "node:assert/strict";
import { test } from "node:test";
import type { CopyJson, RepliesMessage } from "../src/messages.ts";
import { isEnded, loadWords, Replies, copyFigures } from "../src/replies.ts";

function message(seq: number, copies: CopyJson[], more: Partial<RepliesMessage> = {}): RepliesMessage {
  return { kind: "replies", seq, whole: false, fresh: false, run: 1, count: 2, copies, words: "", load: null, ...more };
}

test("texts are added to, and figures replaced", () => {
  const replies = new Replies();
  assert.ok(replies.take(message(1, [[0, "Once", 1, 20, null, "running"]], { fresh: true })));
  assert.ok(replies.take(message(2, [[0, " upon", 2, 20, 50, "running"], [1, "A", 1, 30, null, "length"]])));
  assert.deepEqual(replies.copies.map((copy) => copy.text), ["Once upon", "A"]);
  assert.equal(copyFigures(replies.copies[0]!), "TTFT 20 ms · 50 tokens/s · 2 tokens · running");
  assert.ok(replies.running);
  assert.deepEqual(replies.copies.map(isEnded), [false, true]);
});

test("a gap is noticed, and the whole heals it", () => {
  const replies = new Replies();
  replies.take(message(1, [[0, "a", 1, 1, null, "running"]], { fresh: true }));
  assert.equal(replies.take(message(3, [[0, "c", 3, 1, null, "running"]])), false);
  assert.equal(replies.copies[0]!.text, "a");
  assert.ok(replies.take(message(9, [[0, "abc", 3, 1, null, "stop"]], { whole: true, fresh: true })));
  assert.equal(replies.copies[0]!.text, "abc");
  assert.ok(replies.take(message(10, [])));
});

test("a new run begins with empty copies that wait", () => {
  const replies = new Replies();
  replies.take(message(1, [[0, "old", 1, 1, null, "stop"]], { fresh: true, count: 1 }));
  replies.take(message(2, [], { fresh: true, run: 2, count: 4 }));
  assert.deepEqual(replies.copies.map((copy) => copy.text + copy.state), Array(4).fill("waiting"));
  assert.equal(copyFigures(replies.copies[0]!), "TTFT – · 0 tokens · waiting");
});

test("the summary adds up the rates of all copies, and one copy needs none", () => {
  const replies = new Replies();
  replies.take(message(1, [[0, "a", 2, 1, 40, "length"], [1, "b", 2, 1, 45.5, "running"]], { fresh: true }));
  assert.equal(replies.summary, "1 of 2 have ended, 85.5 tokens/s together");
  replies.take(message(2, [], { fresh: true, count: 1 }));
  assert.equal(replies.summary, "");
});

test("a load is copyFigures with what failed and when it ends", () => {
  const load = { rate: 5, sent: 1200, failed: 3, under_way: 7, left_s: 61 };
  assert.equal(loadWords(load), "5 requests/s on average: 1,200 sent, 7 under way, 3 not served; ends in 2 min or when this page leaves");
});

test("a copy that the run does not have is passed over", () => {
  const replies = new Replies();
  assert.ok(replies.take(message(1, [[7, "x", 1, 1, null, "stop"]], { fresh: true })));
  assert.deepEqual(replies.copies.map((copy) => copy.text), ["", ""]);
});
