// Draws the panels, never more often than the page can bear.

import Plotly from "plotly.js-basic-dist-min";
import { Cursor } from "./cursor.ts";
import { ceiling, layout, lineKey, markTrace, PANEL_HEIGHT, range, reading, traces, type View } from "./layout.ts";
import type { Mark, Panel } from "./messages.ts";
import type { Page } from "./page.ts";
import { picture, type Figure } from "./picture.ts";
import type { Rows } from "./rows.ts";
import { PRINT, readTheme, type Theme } from "./theme.ts";

/** Drawing may take this part of the page's time. */
const DUTY = 0.4;
/** A frame that has drawn for so long leaves the other panels to the next ones: one panel a frame,
 * for a panel takes some 6 ms, and two with the layout would miss the frame. */
const SLICE_MS = 1;
const PICTURE_WIDTH = 400;
const CONFIG = { displayModeBar: false, responsive: false };

/** What a panel shows: the figures and the look it was drawn with, and from when to when. */
interface Drawn {
  look: string;
  range: [number, number];
  width: number;
}

interface PlotlyElement {
  on(event: string, callback: (event: { curveNumber: number }) => boolean): void;
}

export interface Content {
  rows: Rows;
  columns: string[];
  panels: Panel[];
  marks: Mark[];
}

export class Charts {
  readonly #page: Page;
  readonly #cursor: Cursor;
  #content: Content | undefined;
  #frame = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #notBefore = 0;
  readonly #drawn = new Map<HTMLElement, Drawn>();
  /** Of the content, counted up. */
  #version = 0;
  /** Panels of the round that is being drawn. */
  #left: Panel[] = [];
  #took = 0;

  #paused: number | undefined;
  #zoom: [number, number] | undefined;
  /** Lines that are switched off, by `lineKey`. */
  readonly #off = new Set<string>();

  constructor(page: Page) {
    this.#page = page;
    this.#cursor = new Cursor(page.grid, {
      scale: (el) => this.#drawn.get(el),
      zoom: (zoom) => this.zoom(zoom),
      read: (el, t) => this.#read(el, t),
      toggle: (el, line) => this.#toggle(el, line),
    });
  }

  /** Stand still at the newest figure, or go on; figures are taken in meanwhile. */
  pause(paused: boolean): void {
    this.#paused = paused ? this.#content?.rows.last : undefined;
    this.#again();
  }

  zoom(zoom: [number, number] | undefined): void {
    this.#zoom = zoom;
    this.#page.setZoom(zoom);
    this.#again();
  }

  /** Draw all of them anew: a round that is under way would show those left at another time. */
  #again(): void {
    this.#left = [];
    if (this.#content) this.show(this.#content);
  }

  #read(el: HTMLElement, t: number): string {
    const panel = this.#panel(el);
    return panel ? reading(panel, this.#content!.columns, this.#content!.rows.at(t)) : "";
  }

  #panel(el: HTMLElement): Panel | undefined {
    return this.#content?.panels.find((each) => this.#page.panels.get(each.id) === el);
  }

  #toggle(el: HTMLElement, place: number): void {
    const panel = this.#panel(el);
    const line = panel?.lines[place];
    if (!panel || !line) return;
    const key = lineKey(panel, line);
    if (!this.#off.delete(key)) this.#off.add(key);
    this.#again();
  }

  #window(): Pick<View, "now" | "window" | "zoom"> {
    return { now: this.#paused ?? this.#content?.rows.last ?? 0, window: this.#page.window, zoom: this.#zoom };
  }

  /** Have this drawn soon; many calls make one drawing. */
  show(content: Content): void {
    this.#content = content;
    this.#version++;
    this.#page.setDrawing(true);
    this.#schedule();
  }

  #schedule(): void {
    if (this.#frame || this.#timer !== undefined) return;
    const wait = this.#notBefore - performance.now();
    if (wait > 0) {
      this.#timer = setTimeout(() => {
        this.#timer = undefined;
        this.#request();
      }, wait);
    } else {
      this.#request();
    }
  }

  /** Draw those in sight that do not show what is known now, or not as the page looks now. */
  refresh(): void {
    if (!this.#outdated().length) return;
    this.#page.setDrawing(true);
    this.#schedule();
  }

  #outdated(): Panel[] {
    const look = this.#look();
    return (this.#content?.panels ?? []).filter((panel) => {
      const el = this.#page.panels.get(panel.id)!;
      return this.#drawn.get(el)?.look !== look && this.#inSight(el);
    });
  }

  async picture(): Promise<ArrayBuffer> {
    if (!this.#content) throw new Error("there is nothing to draw yet");
    const brief = this.#content.panels.filter((panel) => panel.brief);
    const figures = this.#figures(this.#content, brief, PRINT, PICTURE_WIDTH);
    return picture(figures, PICTURE_WIDTH, PANEL_HEIGHT);
  }

  close(): void {
    cancelAnimationFrame(this.#frame);
    clearTimeout(this.#timer);
    for (const el of this.#page.panels.values()) Plotly.purge(el);
  }

  #request(): void {
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw(): void {
    const width = this.#page.panelWidth;
    if (!this.#content || width === 0) return;
    const started = performance.now();
    if (!this.#left.length) {
      this.#left = this.#outdated();
      this.#took = 0;
    }
    const [theme, look] = [readTheme(this.#page.probe), this.#look()];
    while (this.#left.length && performance.now() - started < SLICE_MS) {
      const panel = this.#left.shift()!;
      const [figure] = this.#figures(this.#content, [panel], theme, width);
      this.#plot(this.#page.panels.get(panel.id)!, figure!, { look, width, range: range(this.#window()) });
    }
    this.#cursor.refresh();
    this.#took += performance.now() - started;
    if (this.#left.length) return this.#request();
    this.#notBefore = performance.now() + this.#took * (1 / DUTY - 1);
    if (this.#outdated().length) this.#schedule();
    else this.#page.setDrawing(false);
  }

  /** Laid out afresh for another width: else a legend that took two rows stays where it was. */
  #plot(el: HTMLElement, { data, layout }: Figure, drawn: Drawn): void {
    const before = this.#drawn.get(el);
    this.#drawn.set(el, drawn);
    if (before?.width === drawn.width) return void Plotly.react(el, data, layout, CONFIG);
    Plotly.purge(el);
    void Plotly.newPlot(el, data, layout, CONFIG);
    const plot = el as unknown as PlotlyElement;
    plot.on("plotly_legendclick", ({ curveNumber }) => {
      this.#toggle(el, curveNumber);
      return false; // drawn by us, and so that it stays
    });
    plot.on("plotly_legenddoubleclick", () => false);
  }

  /** What is scrolled away is drawn once it comes into sight. */
  #inSight(el: HTMLElement): boolean {
    const box = el.getBoundingClientRect();
    return box.bottom > -PANEL_HEIGHT && box.top < window.innerHeight + PANEL_HEIGHT;
  }

  #figures(content: Content, panels: Panel[], theme: Theme, width: number): Figure[] {
    return panels.map((panel) => {
      const view: View = { panel, theme, width, ...this.#window(), marks: content.marks, off: this.#off };
      const [start, end] = range(view);
      const span = content.rows.between(start, end);
      const top = ceiling(span, { ...panel, lines: panel.lines.filter((line) => !this.#off.has(lineKey(panel, line))) }, content.columns);
      return {
        data: [...traces(view, span, content.columns, top), markTrace(view, top)],
        layout: layout(view, top),
      };
    });
  }

  /** What a panel that is up to date was drawn from. */
  #look(): string {
    const theme = readTheme(this.#page.probe);
    const { now, window, zoom } = this.#window();
    const figures = this.#paused === undefined ? this.#version : `paused at ${now}`;
    return [figures, this.#page.panelWidth, window, zoom, theme.paper, theme.text, ...this.#off].join();
  }
}
