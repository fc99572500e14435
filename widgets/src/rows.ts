// The rows a page keeps: appended at the end, forgotten at the front, always contiguous.

import type { Frame } from "./codec.ts";

export interface Span {
  times: Float64Array;
  columns: Float32Array[];
}

export class Rows {
  readonly #capacity: number;
  // Twice the room: rows move once per `capacity` appends, and a span is a view, not a copy.
  readonly #times: Float64Array;
  readonly #columns: Float32Array[];
  #end = 0;

  constructor(columns: number, capacity: number) {
    this.#capacity = capacity;
    this.#times = new Float64Array(2 * capacity);
    this.#columns = Array.from({ length: columns }, () => new Float32Array(2 * capacity));
  }

  get length(): number {
    return Math.min(this.#end, this.#capacity);
  }

  get last(): number {
    return this.#end ? this.#times[this.#end - 1]! : 0;
  }

  append(frame: Frame): void {
    const skip = Math.max(0, frame.rows - this.#capacity);
    const rows = frame.rows - skip;
    if (this.#end + rows > 2 * this.#capacity) {
      const kept = Math.min(this.#end, this.#capacity);
      this.#times.copyWithin(0, this.#end - kept, this.#end);
      for (const column of this.#columns) column.copyWithin(0, this.#end - kept, this.#end);
      this.#end = kept;
    }
    this.#times.set(frame.times.subarray(skip), this.#end);
    this.#columns.forEach((column, c) => column.set(frame.columns[c]!.subarray(skip), this.#end));
    this.#end += rows;
  }

  /** The kept rows not older than `from`; views that the next append may change. */
  since(from: number): Span {
    return this.between(from, Infinity);
  }

  /** The kept rows from `from` to `to`, both included. */
  between(from: number, to: number): Span {
    const low = this.#firstAfter((t) => t >= from);
    const high = this.#firstAfter((t) => t > to);
    return {
      times: this.#times.subarray(low, high),
      columns: this.#columns.map((column) => column.subarray(low, high)),
    };
  }

  /** The newest row not later than `t`, by column; undefined where none is. */
  at(t: number): number[] | undefined {
    const place = this.#firstAfter((time) => time > t) - 1;
    if (place < this.#end - this.length) return undefined;
    return this.#columns.map((column) => column[place]!);
  }

  #firstAfter(passed: (t: number) => boolean): number {
    let low = this.#end - this.length;
    let high = this.#end;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (passed(this.#times[middle]!)) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
