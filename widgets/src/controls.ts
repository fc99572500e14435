// Shows on the sliders what code, magics or HTTP did to the knobs. Here and not in the kernel:
// a control that the kernel writes from a background thread stops reacting while a cell runs.

import type { ControlPlace, KnobValue } from "./messages.ts";
import type { ControlModel, Model } from "./widget.ts";

/** Sets the controls that show another value, and reports them to the kernel's side. */
export async function showKnobs(
  model: Pick<Model, "widget_manager">,
  places: Record<string, ControlPlace>,
  knobs: Record<string, KnobValue>,
): Promise<void> {
  const get = (id: string) => model.widget_manager.get_model(id);
  for (const [name, value] of Object.entries(knobs)) {
    const place = places[name];
    if (!place) continue;
    try {
      // the value first: under a ticked "none" it changes nothing until the tick goes
      if (value !== null) putValue(await get(place.value), value, place.choices);
      if (place.none !== null) put(await get(place.none), "value", value === null);
    } catch {
      return; // the controls are closed, or another front end without a manager: charts go on
    }
  }
}

function putValue(control: ControlModel, value: string | number, choices: string[] | null): void {
  if (choices === null) put(control, "value", value);
  else put(control, "index", choices.indexOf(String(value)));
}

function put(control: ControlModel, trait: "value" | "index", value: unknown): void {
  if (control.get(trait) === value) return;
  control.set(trait, value);
  control.save_changes();
}
