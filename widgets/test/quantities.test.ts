import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { duration, moment, number, unitOf } from "../src/quantities.ts";

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
