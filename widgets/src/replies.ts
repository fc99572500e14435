// What a page knows of its playground; the twin of src/llmserve/dashboard/replies.py. Pure.

import type { CopyJson, LoadState, PlayLimits, RepliesMessage } from "./messages.ts";
import { duration, number } from "./quantities.ts";

export interface Reply {
  text: string;
  tokens: number;
  ttftMs: number | null;
  rate: number | null;
  state: string;
}

export class Replies {
  copies: Reply[] = [];
  load: LoadState | null = null;
  words = "";
  limits: PlayLimits | undefined;
  #seq = 0;

  /** False where messages before this one are missing: ask for all of it. */
  take(message: RepliesMessage): boolean {
    if (!message.whole && message.seq !== this.#seq + 1) return false;
    this.#seq = message.seq;
    this.limits = message.limits ?? this.limits;
    this.words = message.words;
    this.load = message.load;
    if (message.fresh) {
      this.copies = Array.from({ length: message.count }, () => ({ text: "", tokens: 0, ttftMs: null, rate: null, state: "waiting" }));
    }
    for (const copy of message.copies) this.#takeCopy(copy);
    return true;
  }

  get running(): boolean {
    return this.copies.some((copy) => !isEnded(copy));
  }

  /** All copies in one line: how many tokens a second they made together, once there is something to say. */
  get summary(): string {
    if (this.copies.length < 2) return "";
    const ended = this.copies.filter(isEnded).length;
    const known = this.copies.filter((copy) => copy.rate !== null);
    const rate = known.reduce((sum, copy) => sum + copy.rate!, 0);
    const together = known.length ? `, ${number(rate)} tokens/s together` : "";
    return `${ended} of ${this.copies.length} have ended${together}`;
  }

  #takeCopy([number, text, tokens, ttftMs, rate, state]: CopyJson): void {
    const copy = this.copies[number];
    if (copy) Object.assign(copy, { text: copy.text + text, tokens, ttftMs, rate, state });
  }
}

export function isEnded(copy: Reply): boolean {
  return copy.state !== "waiting" && copy.state !== "running";
}

/** One copy's own figures, in words. */
export function copyFigures(copy: Reply): string {
  const parts = [`TTFT ${duration(copy.ttftMs === null ? null : copy.ttftMs / 1e3)}`];
  if (copy.rate !== null) parts.push(`${number(copy.rate)} tokens/s`);
  parts.push(`${copy.tokens} ${copy.tokens === 1 ? "token" : "tokens"}`, copy.state);
  return parts.join(" · ");
}

export function loadWords(load: LoadState): string {
  const failed = load.failed ? `, ${load.failed.toLocaleString("en")} not served` : "";
  const minutes = Math.max(1, Math.ceil(load.left_s / 60));
  return `${load.rate} requests/s on average: ${load.sent.toLocaleString("en")} sent, ${load.under_way} under way${failed}; ends in ${minutes} min or when this page leaves`;
}
