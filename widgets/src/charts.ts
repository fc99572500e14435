// Draws the panels, never more often than the page can bear.

import Plotly from "plotly.js-basic-dist-min";
import { ceiling, layout, markTrace, PANEL_HEIGHT, traces, type View } from "./layout.ts";
import type { Mark, Panel } from "./messages.ts";
import type { Page } from "./page.ts";
import { picture, type Figure } from "./picture.ts";
import type { Rows } from "./rows.ts";
import { PRINT, readTheme, type Theme } from "./theme.ts";

/** Drawing may take this part of the page's time. */
const DUTY = 0.4;
const PICTURE_WIDTH = 400;
const CONFIG = { displayModeBar: false, responsive: false };

export interface Content {
  rows: Rows;
  columns: string[];
  panels: Panel[];
  marks: Mark[];
}

export class Charts {
  readonly #page: Page;
  #content: Content | undefined;
  #frame = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #notBefore = 0;
  #drawn = "";

  constructor(page: Page) {
    this.#page = page;
  }

  /** Have this drawn soon; many calls make one drawing. */
  show(content: Content): void {
    this.#content = content;
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

  /** Draw again where the width or the theme has changed since. */
  refresh(): void {
    if (this.#content && this.#drawn !== this.#look()) this.show(this.#content);
  }

  async picture(): Promise<ArrayBuffer> {
    if (!this.#content) throw new Error("there is nothing to draw yet");
    const figures = this.#figures(this.#content, PRINT, PICTURE_WIDTH);
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
    const figures = this.#figures(this.#content, readTheme(this.#page.probe), width);
    this.#content.panels.forEach((panel, i) => {
      const { data, layout } = figures[i]!;
      void Plotly.react(this.#page.panels.get(panel.id)!, data, layout, CONFIG);
    });
    this.#drawn = this.#look();
    const took = performance.now() - started;
    this.#notBefore = performance.now() + took * (1 / DUTY - 1);
  }

  #figures(content: Content, theme: Theme, width: number): Figure[] {
    const now = content.rows.last;
    return content.panels.map((panel) => {
      const view: View = { panel, theme, width, window: this.#page.window, now, marks: content.marks };
      const span = content.rows.since(Math.max(0, now - view.window));
      const top = ceiling(span, panel, content.columns);
      return {
        data: [...traces(view, span, content.columns), markTrace(view, top)],
        layout: layout(view, top),
      };
    });
  }

  #look(): string {
    const theme = readTheme(this.#page.probe);
    return [this.#page.panelWidth, this.#page.window, theme.paper, theme.text].join();
  }
}
