// What a page knows of the batch tape; the twin of src/llmserve/dashboard/batch_tape.py. Pure.

import type { TapeMessage, TapeRowJson } from "./messages.ts";

export interface Segment {
  first: number;
  /** Infinity while it goes on. */
  last: number;
  kind: number;
  tokens: number;
  kv: number;
}

export interface Row {
  number: number;
  id: string;
  tenant: string | null;
  priority: number;
  promptTokens: number | null;
  submitted: number | null;
  dispatched: number | null;
  first: number | null;
  ended: number | null;
  reason: string | null;
  tokens: number | null;
  preemptions: number;
  cached: number;
  /** In the order of their steps; the open one, if there is one, last. */
  segments: Segment[];
}

export interface Step {
  ordinal: number;
  start: number;
  duration: number;
  index: number;
  prefill: number;
  decode: number;
  waiting: number;
  kv: number;
}

const STEP_BYTES = 32;
const SEGMENT_BYTES = 20;
const OPEN = 0xffffffff;
const KEPT_REQUESTS = 2_000;
const STOPPED = ["abort", "timeout", "error"];

export class Tape {
  kinds: string[] = [];
  readonly rows = new Map<number, Row>();
  #capacity = 1;
  #steps: Step[] = [];
  #seq = 0;

  /** False where messages before this one are missing: ask for all of it. */
  take(message: TapeMessage, steps: DataView, segments: DataView): boolean {
    if (message.whole) {
      this.rows.clear();
      this.#steps = [];
      this.kinds = message.kinds ?? [];
      this.#capacity = message.capacity ?? 1;
    } else if (message.seq !== this.#seq + 1) {
      return false;
    }
    this.#seq = message.seq;
    for (const row of message.rows) this.#takeRow(row);
    this.#takeSteps(message.first, steps);
    for (let at = 0; at < segments.byteLength; at += SEGMENT_BYTES) this.#takeSegment(segments, at);
    for (const [number] of message.rows) this.#settle(this.rows.get(number)!);
    if (this.#steps.length > 1.1 * this.#capacity || this.rows.size > 1.1 * KEPT_REQUESTS) this.#forget();
    return true;
  }

  /** The ordinal of the first step that is known. */
  get first(): number {
    return this.#steps[0]?.ordinal ?? 0;
  }

  /** The ordinal after the last. */
  get end(): number {
    return (this.#steps.at(-1)?.ordinal ?? -1) + 1;
  }

  step(ordinal: number): Step | undefined {
    return this.#steps[ordinal - this.first];
  }

  /** Requests with something to show in these steps, by arrival. */
  visible(from: number, to: number): Row[] {
    const shown = [];
    for (const row of this.rows.values()) {
      const at = firstEndingAfter(row.segments, from);
      if (at < row.segments.length && row.segments[at]!.first < to) shown.push(row);
    }
    return shown.sort((a, b) => a.number - b.number);
  }

  segmentAt(row: Row, ordinal: number): Segment | undefined {
    const segment = row.segments[firstEndingAfter(row.segments, ordinal)];
    return segment && segment.first <= ordinal ? segment : undefined;
  }

  /** Tokens in a request's KV after the step, those that the cache gave it included. */
  stored(row: Row, segment: Segment, ordinal: number): number {
    const name = this.kinds[segment.kind];
    const works = name === "prefill" || name === "decode";
    const computed = segment.kv + (works ? segment.tokens * (ordinal - segment.first + 1) : 0);
    return computed ? computed + row.cached : 0;
  }

  #takeRow(json: TapeRowJson): void {
    const [number, id, tenant, priority, promptTokens, submitted, dispatched, first, ended, reason, tokens, preemptions, cached] = json;
    const segments = this.rows.get(number)?.segments ?? [];
    this.rows.set(number, {
      number, id, tenant, priority, promptTokens, submitted, dispatched, first, ended, reason, tokens, preemptions, cached, segments,
    });
  }

  #takeSteps(first: number, view: DataView): void {
    if (view.byteLength && first !== this.end) this.#steps = []; // a gap: older ones have no place
    for (let at = 0, ordinal = first; at < view.byteLength; at += STEP_BYTES, ordinal++) {
      const [index, prefill, decode, waiting, kv] = [12, 16, 20, 24, 28].map((o) => view.getUint32(at + o, true));
      this.#steps.push({
        ordinal,
        start: view.getFloat64(at, true),
        duration: view.getFloat32(at + 8, true),
        index: index!, prefill: prefill!, decode: decode!, waiting: waiting!, kv: kv!,
      });
    }
  }

  #takeSegment(view: DataView, at: number): void {
    const row = this.rows.get(view.getUint32(at, true));
    if (!row) return;
    const last = view.getUint32(at + 8, true);
    const segment: Segment = {
      first: view.getUint32(at + 4, true),
      last: last === OPEN ? Infinity : last,
      kind: view.getUint16(at + 12, true),
      tokens: view.getUint16(at + 14, true),
      kv: view.getUint32(at + 16, true),
    };
    if (last === OPEN && row.ended !== null) return; // nothing goes on after the end
    const open = row.segments.at(-1);
    if (open?.first === segment.first) row.segments.pop(); // the same, as it is known now
    else if (open?.last === Infinity) {
      if (open.first < segment.first) open.last = segment.first - 1; // its end was not sent: no step
      else row.segments.pop();
      if (last !== OPEN && open.first > segment.first) {
        if (row.segments.at(-1)?.first === segment.first) row.segments.pop();
        row.segments.push(segment, open); // its end came late, after the next had begun
        return;
      }
    }
    row.segments.push(segment);
  }

  /** What a request did goes on to no step that began after its end; its last one may be sent
   * later, and what showed in no step never is. */
  #settle(row: Row): void {
    const open = row.segments.at(-1);
    if (row.ended === null || open?.last !== Infinity) return;
    let last = this.end - 1;
    while (last >= open.first && (this.step(last)?.start ?? -Infinity) >= row.ended) last--;
    if (last < open.first) row.segments.pop();
    else open.last = last;
  }

  #forget(): void {
    this.#steps = this.#steps.slice(-this.#capacity);
    for (const row of this.rows.values()) {
      row.segments = row.segments.slice(firstEndingAfter(row.segments, this.first));
      const done = row.ended !== null && !row.segments.length;
      if (done || (row.ended !== null && this.rows.size > KEPT_REQUESTS)) this.rows.delete(row.number);
    }
  }
}

/** Whether it was stopped before its reply was whole: drawn as a cross. */
export function isStopped(row: Row): boolean {
  return row.ended !== null && row.reason !== null && STOPPED.includes(row.reason);
}

/** The index of the first segment that is not over before `ordinal`. */
export function firstEndingAfter(segments: Segment[], ordinal: number): number {
  let low = 0;
  let high = segments.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (segments[middle]!.last < ordinal) low = middle + 1;
    else high = middle;
  }
  return low;
}

const START = /-[0-9a-f]{12}(?=-\d)/;

/** A request's id in few letters: without the part that all ids of one start share. */
export function shortId(id: string): string {
  const own = id.replace(START, "");
  return own.length > 16 ? `${own.slice(0, 7)}…${own.slice(-7)}` : own;
}
