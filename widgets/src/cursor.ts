// One cursor for all panels: a line at the same time in each, and dragging it selects a span.

import { element } from "./dom.ts";
import { MARGIN } from "./layout.ts";

const SHORTEST_S = 0.5;

export interface Scale {
  range: [number, number];
  width: number;
}

/** Time at `x` pixels from a panel's left edge, within what the panel shows. */
export function timeAt(x: number, { range, width }: Scale): number {
  const part = (x - MARGIN.l) / (width - MARGIN.l - MARGIN.r);
  return range[0] + Math.min(Math.max(part, 0), 1) * (range[1] - range[0]);
}

export function placeOf(t: number, { range, width }: Scale): number {
  return MARGIN.l + ((t - range[0]) / (range[1] - range[0])) * (width - MARGIN.l - MARGIN.r);
}

export class Cursor {
  readonly #grid: HTMLElement;
  readonly #scale: () => Scale | undefined;
  readonly #onZoom: (zoom: [number, number] | undefined) => void;
  readonly #lines = new Map<HTMLElement, HTMLElement>();
  #from: number | undefined;

  constructor(grid: HTMLElement, scale: () => Scale | undefined, onZoom: (zoom: [number, number] | undefined) => void) {
    this.#grid = grid;
    this.#scale = scale;
    this.#onZoom = onZoom;
    grid.addEventListener("pointermove", (event) => this.#move(event));
    grid.addEventListener("pointerleave", () => this.#hide());
    grid.addEventListener("pointerdown", (event) => {
      this.#from = this.#time(event);
      if (this.#from !== undefined) event.preventDefault(); // or plotly covers the page for a drag of its own
    });
    grid.addEventListener("pointerup", (event) => this.#release(event));
    grid.addEventListener("dblclick", () => onZoom(undefined));
  }

  #move(event: PointerEvent): void {
    const t = this.#time(event);
    const scale = this.#scale();
    if (t === undefined || !scale) return this.#hide();
    const start = this.#from !== undefined && event.buttons ? this.#from : t;
    const [left, right] = [placeOf(Math.min(start, t), scale), placeOf(Math.max(start, t), scale)];
    for (const panel of this.#grid.querySelectorAll<HTMLElement>(".panel")) {
      const line = this.#line(panel);
      line.hidden = false;
      line.style.left = `${left}px`;
      line.style.width = `${Math.max(1, right - left)}px`;
      line.dataset["time"] = `${t.toFixed(1)} s`;
    }
  }

  #release(event: PointerEvent): void {
    const [from, to] = [this.#from, this.#time(event)];
    this.#from = undefined;
    if (from !== undefined && to !== undefined && Math.abs(to - from) >= SHORTEST_S) {
      this.#onZoom([Math.min(from, to), Math.max(from, to)]);
    }
  }

  /** Over a panel's plot; the legend above it is for clicks. */
  #time(event: PointerEvent): number | undefined {
    const panel = (event.target as HTMLElement).closest<HTMLElement>(".panel");
    const scale = this.#scale();
    if (!panel || !scale) return undefined;
    const box = panel.getBoundingClientRect();
    if (event.clientY < box.top + MARGIN.t || event.clientY > box.bottom - MARGIN.b) return undefined;
    return timeAt(event.clientX - box.left, scale);
  }

  #line(panel: HTMLElement): HTMLElement {
    let line = this.#lines.get(panel);
    if (!line) {
      line = element("div", "cursor", "cursor");
      this.#lines.set(panel, line);
    }
    if (line.parentElement !== panel) panel.append(line);
    return line;
  }

  #hide(): void {
    for (const line of this.#lines.values()) line.hidden = true;
  }
}
