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
  brief: boolean;
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
  /** What computes, and on what. */
  place: string;
  url: string;
  /** Tokens of a KV block, where there are blocks. */
  block_size: number | null;
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

/** number, id, tenant, priority, prompt tokens, submitted, dispatched, first token, ended, reason, tokens, preemptions, prompt tokens from the cache */
export type TapeRowJson = [
  number, string, string | null, number, number | null, number | null, number | null, number | null, number | null,
  string | null, number | null, number, number,
];

export interface TapeMessage {
  kind: "tape";
  seq: number;
  whole: boolean;
  first: number;
  rows: TapeRowJson[];
  kinds?: string[];
  capacity?: number;
}

/** Figure, the binding knob's value where there were several, p95 in ms, and its parts: label, ms, colour. */
export type WhyBar = [string, string, number, [string, number, string][]];

export interface WhyMessage {
  kind: "why";
  lines: string[];
  bars: WhyBar[];
}

/** number, text to add, tokens, TTFT in ms, tokens/s, state */
export type CopyJson = [number, string, number, number | null, number | null, string];

export interface LoadState {
  rate: number;
  sent: number;
  failed: number;
  under_way: number;
  left_s: number;
}

export interface PlayLimits {
  text: number;
  copies: number;
  max_tokens: number;
  rate: number;
  load_s: number;
}

export interface RepliesMessage {
  kind: "replies";
  seq: number;
  /** All there is, for a page that has nothing. */
  whole: boolean;
  /** Copies of a run that the page knows nothing of. */
  fresh: boolean;
  run: number;
  count: number;
  copies: CopyJson[];
  words: string;
  load: LoadState | null;
  limits?: PlayLimits;
}

export type FromKernel =
  | Delta
  | Snapshot
  | TapeMessage
  | WhyMessage
  | RepliesMessage
  | PictureWanted
  | { kind: "module" };

export type PlayAct =
  | { act: "send"; text: string; copies: number; max_tokens: number }
  | { act: "stop" }
  | { act: "load"; rate: number }
  | { act: "unload" };

export type ToKernel =
  | { kind: "hello" }
  | { kind: "ack"; seq: number }
  | { kind: "bye" }
  | { kind: "module" }
  | { kind: "tape" }
  | { kind: "replies" }
  | ({ kind: "play" } & PlayAct)
  | { kind: "picture"; id: number };
