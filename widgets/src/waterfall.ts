// One request's life in seconds, out of its row and its segments. Pure.

import type { Row, Tape } from "./tape.ts";

export interface Span {
  kind: string;
  start: number;
  end: number;
}

export interface Life {
  start: number;
  end: number;
  spans: Span[];
  /** Seconds by kind, "stall" being time in the engine without a part in any step. */
  totals: Map<string, number>;
}

const STALL_S = 0.0005;

/** `now` ends a request that has not ended. */
export function life(row: Row, tape: Tape, now: number): Life {
  const steps = row.segments.flatMap((segment) => {
    const first = tape.step(segment.first);
    const last = tape.step(Math.min(segment.last, tape.end - 1));
    if (!first || !last) return [];
    return [{ kind: tape.kinds[segment.kind]!, start: first.start, end: last.start + last.duration }];
  });
  const start = row.submitted ?? steps[0]?.start ?? now;
  const end = Math.max(start, row.ended ?? now);
  const dispatched = row.dispatched ?? (row.submitted === null ? start : end);
  const front: Span = { kind: "queue", start, end: Math.min(dispatched, end) };
  const spans = front.end > front.start ? [front] : [];
  for (const span of steps) {
    const from = Math.max(span.start, spans.at(-1)?.end ?? dispatched, dispatched);
    const to = Math.min(span.end, end);
    const before = spans.at(-1)?.end ?? start;
    if (from - before > STALL_S && to > from) spans.push({ kind: "stall", start: before, end: from });
    if (to > from) spans.push({ ...span, start: from, end: to });
  }
  const reached = spans.at(-1)?.end ?? start;
  if (end - reached > STALL_S) spans.push({ kind: "stall", start: reached, end });
  const totals = new Map<string, number>();
  for (const span of spans) totals.set(span.kind, (totals.get(span.kind) ?? 0) + span.end - span.start);
  return { start, end, spans, totals };
}
