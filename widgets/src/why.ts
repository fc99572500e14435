// Why it is slow: a bar per figure and value of the knob that binds, and the sentences under it.

import { element } from "./dom.ts";
import type { WhyMessage } from "./messages.ts";
import { duration } from "./quantities.ts";

export class WhyPanel {
  readonly el = element("section", "why", "why");

  constructor() {
    this.el.hidden = true;
    this.el.setAttribute("aria-label", "why it is slow");
  }

  show(message: WhyMessage): void {
    this.el.hidden = false;
    const widest = Math.max(...message.bars.map(([, , ms]) => ms), 1e-9);
    const bars = message.bars.map(([metric, under, ms, parts]) => {
      const row = element("div", "bar");
      row.append(element("b", "", undefined, `${metric} p95`), element("span", "ms", undefined, duration(ms / 1e3)));
      const track = element("span", "track");
      if (under) track.append(element("span", "under faint", "bar-under", under));
      const bar = element("span", "parts", `bar-${metric}`);
      bar.style.width = message.bars.length > 1 ? `${Math.max(100 * (ms / widest), 12)}%` : "100%";
      for (const [label, part, color] of parts) {
        const piece = element("span");
        piece.style.width = `${(100 * part) / ms}%`;
        piece.style.background = color;
        piece.title = `${label}: ${duration(part / 1e3)}`;
        bar.append(piece);
      }
      track.append(bar);
      row.append(track);
      return row;
    });
    const legend = element("div", "legend");
    const seen = new Map(message.bars.flatMap(([, , ms, parts]) => parts.filter((p) => p[1] > 0.03 * ms).map(([label, , color]) => [label, color])));
    for (const [label, color] of seen) legend.append(swatch(label, color));
    const words = message.lines.map((line) => element("div", "line", undefined, line));
    this.el.replaceChildren(element("h3", "", undefined, "Why slow"), ...bars, legend, ...words);
  }
}

export function swatch(label: string, color: string, thin = false): HTMLElement {
  const el = element("span", "swatch", undefined, label);
  const box = element("i", thin ? "thin" : "");
  box.style.background = color;
  el.prepend(box);
  return el;
}
