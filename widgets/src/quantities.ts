// Durations and numbers as people read them; the twin of src/llmserve/core/quantities.py, which
// describes them. One table of cases (test/quantities.json) tests both.

export interface Unit {
  name: string;
  /** How long one of it is. */
  seconds: number;
  /** The next larger unit is taken from so many of it on. */
  below: number;
}

export const UNITS: readonly Unit[] = [
  { name: "ms", seconds: 1e-3, below: 1000 },
  { name: "s", seconds: 1, below: 100 },
  { name: "min", seconds: 60, below: Infinity },
];
const NONE = "–";
export const CLOCK_FROM_S = 100;
const STEPS_S = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

/** The unit in which a duration of this size is shown, once it is rounded. */
export function unitOf(seconds: number): Unit {
  const size = Math.abs(seconds);
  return UNITS.find((unit) => rounded(size / unit.seconds) < unit.below) ?? UNITS.at(-1)!;
}

/** As `845 ms`, `3.26 s`, `12.5 min`; `–` where there is none. */
export function duration(seconds: number | null): string {
  if (seconds === null || Number.isNaN(seconds)) return NONE;
  const unit = unitOf(seconds);
  const size = Math.abs(seconds);
  if (size > 0 && size < 0.005e-3) return `${seconds < 0 ? "-" : ""}<0.01 ms`;
  return `${number(seconds / unit.seconds)} ${unit.name}`;
}

/** A time since the start, as an axis has it: `41.2 s`, then `2:05`, then `1:02:05`. */
export function moment(seconds: number): string {
  if (Math.abs(seconds) < CLOCK_FROM_S) return `${number(seconds)} s`;
  return `${seconds < 0 ? "-" : ""}${clock(Math.abs(seconds))}`;
}

/** Hours, minutes and seconds, with so many decimals. */
export function clock(seconds: number, digits = 0): string {
  const scale = 10 ** digits;
  const parts = Math.floor(seconds * scale + 0.5);
  const whole = Math.floor(parts / scale);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const rest = ((parts - 60 * scale * Math.floor(whole / 60)) / scale).toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
  return hours ? `${hours.toLocaleString("en")}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** Round times to label an axis at, `most` of them or fewer, each in words. */
export function timeTicks(start: number, end: number, most: number): { at: number[]; words: string[] } {
  const rough = (end - start) / most;
  const step = STEPS_S.find((each) => each >= rough) ?? STEPS_S.at(-1)! * Math.ceil(rough / STEPS_S.at(-1)!);
  const first = Math.ceil(start / step - 1e-9);
  const count = Math.max(0, Math.floor(end / step + 1e-9) - first + 1);
  const at = Array.from({ length: count }, (_, i) => (first + i) * step);
  const digits = step < 0.1 ? 2 : step < 1 ? 1 : 0;
  return { at, words: at.map((t) => (end < CLOCK_FROM_S ? t.toFixed(digits) : clock(t, digits))) };
}

/** What the labels of an axis that ends there are in. */
export function clockUnit(end: number): "s" | "min:s" | "h:min:s" {
  if (end < CLOCK_FROM_S) return "s";
  return end < 3600 ? "min:s" : "h:min:s";
}

/** Three digits that say something, more where it is larger; `12,400`, never `1.24e+4`. */
export function number(value: number): string {
  if (!Number.isFinite(value)) return NONE;
  const size = rounded(Math.abs(value));
  const text = size.toLocaleString("en", { maximumFractionDigits: 2 });
  return value < 0 && size ? `-${text}` : text;
}

function decimals(size: number): number {
  return size < 10 ? 2 : size < 100 ? 1 : 0;
}

/** Half up, as Python does it too: both must show the same. */
function rounded(size: number): number {
  if (!Number.isFinite(size)) return size;
  const scale = 10 ** decimals(size);
  return Math.floor(size * scale + 0.5) / scale;
}
