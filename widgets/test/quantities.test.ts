import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { clock, duration, moment, number, timeTicks, unitOf } from "../src/quantities.ts";

const CASES = JSON.parse(readFileSync(new URL("./quantities.json", import.meta.url), "utf-8")) as {
  duration: [number | null, string][];
  moment: [number, string][];
  number: [number, string][];
};

test("durations, moments and numbers read as Python writes them", () => {
  for (const [value, words] of CASES.duration) assert.equal(duration(value), words);
  for (const [value, words] of CASES.moment) assert.equal(moment(value), words);
  for (const [value, words] of CASES.number) assert.equal(number(value), words);
});

test("a longer duration is never in a smaller unit nor shown as less, and none has an exponent", () => {
  const sizes = { ms: 1e-3, s: 1, min: 60 } as Record<string, number>;
  let last = -1;
  for (let exponent = -7; exponent < 9; exponent += 0.013) {
    const seconds = 10 ** exponent;
    const words = duration(seconds);
    assert.match(words, /^<?[\d,]+(\.\d+)? (ms|s|min)$/);
    const [value, name] = words.replace("<", "").split(" ") as [string, string];
    const shown = Number(value.replaceAll(",", "")) * sizes[name]!;
    assert.ok(shown >= last * (1 - 1e-12), `${words} after ${last}`);
    assert.equal(unitOf(seconds).name, name);
    last = shown;
  }
});

test("an axis of times is labelled at round times, in seconds first and by the clock later", () => {
  assert.deepEqual(timeTicks(0, 10, 5), { at: [0, 2, 4, 6, 8, 10], words: ["0", "2", "4", "6", "8", "10"] });
  assert.deepEqual(timeTicks(1040, 1160, 5).words, ["17:30", "18:00", "18:30", "19:00"]);
  assert.deepEqual(timeTicks(3570, 3630, 5).words, ["59:30", "59:45", "1:00:00", "1:00:15", "1:00:30"]);
  assert.deepEqual(timeTicks(1119.6, 1120.1, 5).words, ["18:39.6", "18:39.7", "18:39.8", "18:39.9", "18:40.0", "18:40.1"]);
  assert.equal(clock(59.96, 1), "1:00.0");
  for (const [start, end] of [[0, 0.5], [0, 30], [3480, 3600], [86_000, 86_600], [0, 1e6]] as const) {
    const { at, words } = timeTicks(start, end, 5);
    assert.ok(at.length >= 1 && at.length <= 7, `${start} to ${end}: ${at.length}`);
    assert.equal(new Set(words).size, words.length);
  }
});
