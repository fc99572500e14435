import assert from "node:assert/strict";
import { test } from "node:test";
import { showKnobs } from "../src/controls.ts";
import type { KnobValue } from "../src/messages.ts";

class Control {
  saved = 0;
  value: KnobValue | boolean;
  constructor(value: KnobValue | boolean) {
    this.value = value;
  }
  get(): KnobValue | boolean {
    return this.value;
  }
  set(_: "value", value: KnobValue | boolean): void {
    this.value = value;
  }
  save_changes(): void {
    this.saved++;
  }
}

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
  const seqs = new Control(32);
  await showKnobs(manager({ a: seqs }), { max_num_seqs: ["a", null] }, { max_num_seqs: 8 });
  assert.deepEqual([seqs.value, seqs.saved], [8, 1]);
});

test("a control that shows the value already is left alone", async () => {
  const seqs = new Control(8);
  await showKnobs(manager({ a: seqs }), { max_num_seqs: ["a", null] }, { max_num_seqs: 8 });
  assert.equal(seqs.saved, 0);
});

test("none ticks the box and keeps the slider; a value unticks it", async () => {
  const slider = new Control(16);
  const none = new Control(false);
  const model = manager({ s: slider, n: none });
  await showKnobs(model, { max_active: ["s", "n"] }, { max_active: null });
  assert.deepEqual([slider.value, none.value], [16, true]);
  await showKnobs(model, { max_active: ["s", "n"] }, { max_active: 4 });
  assert.deepEqual([slider.value, none.value], [4, false]);
});

test("closed controls and unknown knobs do no harm", async () => {
  await showKnobs(manager({}), { policy: ["gone", null] }, { policy: "fifo", other: 1 });
});
