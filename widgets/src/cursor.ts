// One cursor for all panels: a line at the same time in each with the figures there, moved by mouse
// or keys; dragging it, or + and -, selects a span.

import { element } from "./dom.ts";
import { MARGIN } from "./layout.ts";
import { clock, CLOCK_FROM_S } from "./quantities.ts";

export const SHORTEST_S = 0.5;
/** Of the time shown, by one press of an arrow; with shift five times as much. */
const KEY_STEP = 0.01;
const LEGEND_KEYS = "123456789";
/** Right of this part of a panel the figures stand left of the line. */
const FLIP = 0.6;

export interface Scale {
  range: [number, number];
  width: number;
}

export interface Host {
  /** Of what a panel shows now, which may be another time than the others show. */
  scale(panel: HTMLElement): Scale | undefined;
  zoom(zoom: [number, number] | undefined): void;
  /** The figures of a panel at this time, a line each. */
  read(panel: HTMLElement, t: number): string;
  /** Switch a panel's line on or off. */
  toggle(panel: HTMLElement, line: number): void;
}

/** Time at `x` pixels from a panel's left edge, within what the panel shows. */
export function timeAt(x: number, { range, width }: Scale): number {
  const part = (x - MARGIN.l) / (width - MARGIN.l - MARGIN.r);
  return range[0] + Math.min(Math.max(part, 0), 1) * (range[1] - range[0]);
}

/** From where to where a span that ends at `t` is on a panel; nowhere on one that does not show `t`. */
export function spanOn(start: number, t: number, scale: Scale): [number, number] | undefined {
  const [first, last] = scale.range;
  if (t < first || t > last) return undefined;
  const other = Math.min(Math.max(start, first), last);
  return [placeOf(Math.min(other, t), scale), placeOf(Math.max(other, t), scale)];
}

export function placeOf(t: number, { range, width }: Scale): number {
  return MARGIN.l + ((t - range[0]) / (range[1] - range[0])) * (width - MARGIN.l - MARGIN.r);
}

/** `range` made longer or shorter by `factor`, with `t` where it was; never shorter than a zoom. */
export function zoomed([start, end]: [number, number], t: number, factor: number): [number, number] {
  const by = Math.max(factor, SHORTEST_S / (end - start));
  return [Math.max(0, t - by * (t - start)), t + by * (end - t)];
}

export class Cursor {
  readonly #grid: HTMLElement;
  readonly #host: Host;
  readonly #lines = new Map<HTMLElement, HTMLElement>();
  #from: number | undefined;
  #at: number | undefined;
  /** The panel that it was moved on. */
  #panel: HTMLElement | undefined;
  /** Where the mouse holds it, in pixels of a panel; undefined where keys moved it. */
  #x: number | undefined;

  constructor(grid: HTMLElement, host: Host) {
    this.#grid = grid;
    this.#host = host;
    grid.addEventListener("pointermove", (event) => this.#move(event));
    grid.addEventListener("pointerleave", () => this.#hide());
    grid.addEventListener("pointerdown", (event) => {
      this.#from = this.#time(event);
      if (this.#from !== undefined) event.preventDefault(); // or plotly covers the page for a drag of its own
    });
    grid.addEventListener("pointerup", (event) => this.#release(event));
    grid.addEventListener("dblclick", () => host.zoom(undefined));
    grid.addEventListener("keydown", (event) => this.#key(event));
    grid.addEventListener("focusout", () => this.#hide());
  }

  /** The panels have moved on under it. */
  refresh(): void {
    const scale = this.#panel && this.#host.scale(this.#panel);
    if (this.#at === undefined || !scale) return;
    const t = this.#x === undefined ? this.#at : timeAt(this.#x, scale);
    if (t < scale.range[0] || t > scale.range[1]) this.#hide();
    else this.#show(this.#from ?? t, t);
  }

  #move(event: PointerEvent): void {
    const t = this.#time(event);
    if (!event.buttons) this.#from = undefined;
    if (t === undefined) return this.#hide();
    this.#panel = (event.target as HTMLElement).closest<HTMLElement>(".panel")!;
    this.#x = event.clientX - this.#panel.getBoundingClientRect().left;
    this.#show(this.#from ?? t, t);
  }

  #show(start: number, t: number): void {
    this.#at = t;
    for (const panel of this.#grid.querySelectorAll<HTMLElement>(".panel")) {
      const line = this.#line(panel);
      const scale = this.#host.scale(panel);
      const span = scale && spanOn(start, t, scale);
      line.hidden = !span;
      if (!span) continue;
      line.style.left = `${span[0]}px`;
      line.style.width = `${Math.max(1, span[1] - span[0])}px`;
      line.classList.toggle("flipped", span[1] > FLIP * scale.width);
      line.dataset["time"] = t < CLOCK_FROM_S ? `${t.toFixed(1)} s` : clock(t, 1);
      line.dataset["figures"] = this.#host.read(panel, t);
    }
  }

  #release(event: PointerEvent): void {
    const [from, to] = [this.#from, this.#time(event)];
    this.#from = undefined;
    if (from !== undefined && to !== undefined && Math.abs(to - from) >= SHORTEST_S) {
      this.#host.zoom([Math.min(from, to), Math.max(from, to)]);
    }
  }

  #key(event: KeyboardEvent): void {
    const panel = (event.target as HTMLElement).closest<HTMLElement>(".panel");
    const scale = panel && this.#host.scale(panel);
    if (!panel || !scale || event.ctrlKey || event.metaKey || event.altKey) return;
    const [start, end] = scale.range;
    const at = Math.min(Math.max(this.#at ?? end, start), end);
    const step = (event.shiftKey ? 5 : 1) * KEY_STEP * (end - start);
    const go = (t: number) => {
      this.#x = undefined;
      this.#panel = panel;
      this.#show(t, t);
    };
    const actions: Record<string, () => void> = {
      ArrowLeft: () => go(Math.max(start, at - step)),
      ArrowRight: () => go(Math.min(end, at + step)),
      Home: () => go(start),
      End: () => go(end),
      "+": () => this.#host.zoom(zoomed(scale.range, at, 0.5)),
      "=": () => this.#host.zoom(zoomed(scale.range, at, 0.5)),
      "-": () => this.#host.zoom(zoomed(scale.range, at, 2)),
      Escape: () => this.#host.zoom(undefined),
    };
    const line = LEGEND_KEYS.indexOf(event.key);
    const action = line >= 0 ? () => this.#host.toggle(panel, line) : actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook's own shortcuts use the same keys
    action();
  }

  /** Over a panel's plot; the legend above it is for clicks. */
  #time(event: PointerEvent): number | undefined {
    const panel = (event.target as HTMLElement).closest<HTMLElement>(".panel");
    const scale = panel && this.#host.scale(panel);
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
    this.#at = undefined;
    for (const line of this.#lines.values()) line.hidden = true;
  }
}
