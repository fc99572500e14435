// Which steps a tape shows, and how that moves. Pure.

const SHORTEST = 10;

export class Viewport {
  /** Steps shown. */
  span = 200;
  /** Whether it keeps the newest step at its right edge. */
  live = true;
  #from = 0;

  /** First and end of the steps shown, given those that are known. */
  range(first: number, end: number): [number, number] {
    if (this.live) this.#from = end - this.span;
    this.#from = Math.max(Math.min(this.#from, end - this.span), Math.min(first, end - this.span));
    return [this.#from, this.#from + this.span];
  }

  /** By a part of the span; moving past the newest step makes it live again. */
  pan(steps: number, end: number): void {
    this.#from += steps;
    this.live = this.#from + this.span >= end;
  }

  /** Keeps the step under `at` (0 to 1 of the width) where it is. */
  zoom(factor: number, at: number, known: number): void {
    const span = Math.min(Math.max(this.span * factor, SHORTEST), Math.max(known, SHORTEST));
    if (!this.live) this.#from += (this.span - span) * at;
    this.span = span;
  }

  /** Show these steps, some room around. */
  show(first: number, last: number, end: number): void {
    this.span = Math.max(SHORTEST, 1.3 * (last - first + 1));
    this.#from = (first + last + 1 - this.span) / 2;
    this.live = this.#from + this.span >= end;
  }
}

/** Round steps to label an axis at, about `most` of them. */
export function ticks(from: number, to: number, most: number): number[] {
  const rough = (to - from) / Math.max(1, most);
  const decade = 10 ** Math.floor(Math.log10(Math.max(rough, 1)));
  const width = [1, 2, 5, 10].map((k) => k * decade).find((w) => w >= rough) ?? 10 * decade;
  const found = [];
  for (let at = Math.ceil(Math.max(from, 0) / width) * width; at < to; at += width) found.push(at);
  return found;
}
