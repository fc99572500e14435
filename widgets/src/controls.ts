// Shows on the sliders what code, magics or HTTP did to the knobs. Here and not in the kernel:
// a control that the kernel writes from a background thread stops reacting while a cell runs.

import type { KnobValue } from "./messages.ts";
import type { ControlModel, Model } from "./widget.ts";

export type ControlIds = Record<string, [string, string | null]>;

/** Sets the controls that show another value, and tells the kernel's side of them. */
export async function showKnobs(
  model: Pick<Model, "widget_manager">,
  ids: ControlIds,
  knobs: Record<string, KnobValue>,
): Promise<void> {
  for (const [name, value] of Object.entries(knobs)) {
    const [valueId, noneId] = ids[name] ?? [undefined, null];
    if (valueId === undefined) continue;
    try {
      const get = (id: string) => model.widget_manager.get_model(id);
      if (noneId !== null) put(await get(noneId), value === null);
      if (value !== null) put(await get(valueId), value);
    } catch {
      return; // the controls are closed, or another front end without a manager: charts go on
    }
  }
}

function put(control: ControlModel, value: KnobValue | boolean): void {
  if (control.get("value") === value) return;
  control.set("value", value);
  control.save_changes();
}
