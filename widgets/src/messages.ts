// What the kernel says and what a page answers, as custom messages of one widget.

export type KnobValue = string | number | null;

export interface Line {
  column: string;
  label: string;
}

export interface Panel {
  id: string;
  title: string;
  unit: string;
  lines: Line[];
  step: boolean;
  total: number | null;
}

export interface Mark {
  id: number;
  t: number;
  source: string;
  step: number | null;
  changed: Record<string, [KnobValue, KnobValue]>;
  clamped: string[];
  satisfied: Record<string, number>;
}

/** Where a knob's controls are: model ids, and the choices where the value is one of them. */
export interface ControlPlace {
  value: string;
  none: string | null;
  choices: string[] | null;
}

export interface About {
  model: string;
  engine: string;
  device: string;
  url: string;
}

/** What may come with any update, where it has changed. */
export interface News {
  seq: number;
  knobs?: Record<string, KnobValue>;
  panels?: Panel[];
  marks?: Mark[];
  status?: string;
  empty?: boolean;
  ended?: boolean;
}

export interface Delta extends News {
  kind: "delta";
}

export interface Snapshot extends Required<Omit<News, "marks">> {
  kind: "snapshot";
  marks?: Mark[];
  columns: string[];
  capacity: number;
  period_s: number;
  window_s: number;
  controls: Record<string, ControlPlace>;
  about: About;
}

export interface PictureWanted {
  kind: "picture";
  id: number;
}

export type FromKernel = Delta | Snapshot | PictureWanted | { kind: "module" };

export type ToKernel =
  | { kind: "hello" }
  | { kind: "ack"; seq: number }
  | { kind: "bye" }
  | { kind: "module" }
  | { kind: "picture"; id: number };
