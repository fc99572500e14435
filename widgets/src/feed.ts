// One page's end of the link (the kernel's is src/llmserve/dashboard/page_link.py). Pure: time comes in as an
// argument, and what is to be sent goes out as a value.

import type { Delta, Snapshot, ToKernel } from "./messages.ts";

/** Acknowledge this often; the kernel's patience is 2 s. */
export const ACK_MS = 500;
/** Ask anew after this long a silence, and twice as long after each question without answer. */
export const SILENCE_MS = 3_000;
export const LONGEST_SILENCE_MS = 30_000;

export class Feed {
  seq = -1;
  #ackedAt = -Infinity;
  #heardAt = -Infinity;
  #askedAt = -Infinity;
  #firstAskedAt = Infinity;
  #patience = SILENCE_MS;
  #waiting = true;

  hello(now: number): ToKernel {
    this.#askedAt = now;
    this.#firstAskedAt = Math.min(this.#firstAskedAt, now);
    this.#waiting = true;
    return { kind: "hello" };
  }

  /** Whether to take the message in, and what to answer. */
  accept(message: Delta | Snapshot, now: number): { take: boolean; reply?: ToKernel } {
    this.#heardAt = now;
    if (message.kind === "delta" && (this.#waiting || message.seq !== this.seq + 1)) {
      return this.#waiting ? { take: false } : { take: false, reply: this.hello(now) };
    }
    this.seq = message.seq;
    this.#waiting = false;
    this.#patience = SILENCE_MS;
    if (message.kind === "delta" && now - this.#ackedAt < ACK_MS) return { take: true };
    this.#ackedAt = now;
    return { take: true, reply: { kind: "ack", seq: message.seq } };
  }

  /** Called now and then: a question where the kernel has been silent for too long. */
  tick(now: number): ToKernel | undefined {
    // while it waits for a snapshot, deltas meant for another view are no answer
    const since = this.#waiting ? this.#askedAt : Math.max(this.#heardAt, this.#askedAt);
    if (now - since < this.#patience) return undefined;
    this.#patience = Math.min(2 * this.#patience, LONGEST_SILENCE_MS);
    return this.hello(now);
  }

  /** Whole seconds since anything came, or since it was first asked for. */
  silentFor(now: number): number {
    return Math.floor((now - Math.max(this.#heardAt, this.#firstAskedAt)) / 1e3);
  }

  /** Whether figures are coming. */
  live(now: number): boolean {
    return !this.#waiting && now - this.#heardAt < SILENCE_MS;
  }
}
