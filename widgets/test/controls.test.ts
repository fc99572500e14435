import assert from "node:assert/strict";
import { test } from "node:test";
import { showKnobs } from "../src/controls.ts";

const log: string[] = [];

class Control {
  readonly #name: string;
  saved = 0;
  traits: Record<string, unknown>;
  constructor(name: string, traits: Record<string, unknown>) {
    this.#name = name;
    this.traits = traits;
  }
  get(trait: string): unknown {
    return this.traits[trait];
  }
  set(trait: string, value: unknown): void {
    this.traits[trait] = value;
  }
  save_changes(): void {
    this.saved++;
    log.push(this.#name);
  }
}

const place = (value: string, none: string | null = null, choices: string[] | null = null) => ({
  value, none, choices,
});

function manager(controls: Record<string, Control>) {
  return {
    widget_manager: {
      get_model: async (id: string) => {
        const control = controls[id];
        if (!control) throw new Error("closed");
        return control;
      },
    },
  };
}

test("a knob changed elsewhere moves its control, and the kernel's side is told", async () => {
  const seqs = new Control("seqs", { value: 32 });
  await showKnobs(manager({ a: seqs }), { max_num_seqs: place("a") }, { max_num_seqs: 8 });
  assert.deepEqual([seqs.traits["value"], seqs.saved], [8, 1]);
});

test("a control that shows the value already is left alone", async () => {
  const seqs = new Control("seqs", { value: 8 });
  await showKnobs(manager({ a: seqs }), { max_num_seqs: place("a") }, { max_num_seqs: 8 });
  assert.equal(seqs.saved, 0);
});

test("a choice is set by its place, the only thing that a dropdown keeps in the browser", async () => {
  const policy = new Control("policy", { index: 0 });
  const places = { policy: place("a", null, ["fifo", "priority"]) };
  await showKnobs(manager({ a: policy }), places, { policy: "priority" });
  assert.deepEqual(policy.traits, { index: 1 });
});

test("none ticks the box and keeps the slider; a value moves the slider, then unticks", async () => {
  const slider = new Control("slider", { value: 16 });
  const none = new Control("none", { value: false });
  const model = manager({ s: slider, n: none });
  await showKnobs(model, { max_active: place("s", "n") }, { max_active: null });
  assert.deepEqual([slider.traits["value"], none.traits["value"]], [16, true]);
  log.length = 0;
  await showKnobs(model, { max_active: place("s", "n") }, { max_active: 4 });
  assert.deepEqual([slider.traits["value"], none.traits["value"]], [4, false]);
  assert.deepEqual(log, ["slider", "none"]);
});

test("closed controls and unknown knobs do no harm", async () => {
  await showKnobs(manager({}), { policy: place("gone") }, { policy: "fifo", other: 1 });
});
