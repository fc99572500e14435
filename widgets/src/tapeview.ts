// Draws the tape on a canvas, and answers to mouse and keys.

import { element } from "./dom.ts";
import { ALL_KINDS, kindOf, STOPPED } from "./kinds.ts";
import { duration } from "./quantities.ts";
import { firstEndingAfter, isStopped, type Row, type Segment, shortId, type Tape } from "./tape.ts";
import { readTheme, type Theme } from "./theme.ts";
import { ticks, Viewport } from "./viewport.ts";
import { swatch } from "./why.ts";

const HEIGHT = 280;
const GUTTER = 92;
const AXIS = 30;
const LOWEST_ROW = 2;
const TALLEST_ROW = 16;
const NAMED_ROW = 10;
const LONGEST_ARM = 4;

export class TapeView {
  readonly el = element("section", "tape", "tape");
  readonly #canvas = element("canvas", "", "tape-canvas");
  readonly #tip = element("div", "tip", "tape-tip");
  readonly #tape: Tape;
  readonly #probe: HTMLElement;
  readonly #onSelect: (number: number | undefined) => void;
  readonly viewport = new Viewport();
  /** Tokens of a KV block, where there are blocks. */
  blockSize: number | null = null;
  #shown: Row[] = [];
  /** Drawn by the last painting. */
  #crosses = 0;
  /** Where the mouse is, in the window: what it is over changes as the tape moves on. */
  #pointer: { clientX: number; clientY: number } | undefined;
  #selected: number | undefined;
  #scroll = 0;
  #frame = 0;
  #drag: { x: number; y: number; moved: boolean } | undefined;

  constructor(tape: Tape, probe: HTMLElement, onSelect: (number: number | undefined) => void) {
    this.#tape = tape;
    this.#probe = probe;
    this.#onSelect = onSelect;
    this.#canvas.tabIndex = 0;
    this.#canvas.setAttribute("role", "img");
    this.#canvas.setAttribute(
      "aria-label",
      "batch tape: engine steps from left to right, one row per request; arrows move, + and - zoom, End follows",
    );
    this.#tip.hidden = true;
    const legend = element("div", "legend");
    for (const kind of ALL_KINDS) {
      legend.append(swatch(kind.label, kind.color, !kind.works));
    }
    const cross = element("span", "swatch", undefined, "stopped");
    const sign = element("b", "", undefined, STOPPED.sign);
    sign.style.color = STOPPED.color;
    cross.prepend(sign);
    legend.append(cross);
    const hint = element("span", "faint", undefined, "wheel zooms, drag moves, shift+wheel scrolls rows, click selects; thin bars wait");
    const head = element("div", "section-head");
    head.append(element("h3", "", undefined, "Batch tape"), hint);
    this.el.append(head, legend, this.#canvas, this.#tip);
    this.#listen();
  }

  select(number: number | undefined): void {
    this.#selected = number;
    const row = number === undefined ? undefined : this.#tape.rows.get(number);
    const first = row?.segments[0]?.first;
    if (row && first !== undefined && !this.#shown.includes(row)) {
      const last = Math.min(row.segments.at(-1)!.last, this.#tape.end - 1);
      this.viewport.show(Math.max(first, this.#tape.first), last, this.#tape.end);
    }
    this.draw();
    this.#reveal();
  }

  pause(paused: boolean): void {
    this.viewport.live = !paused;
    this.draw();
  }

  /** Have it drawn with the next frame; many calls make one drawing. */
  draw(): void {
    if (this.#frame) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      this.#paint();
    });
  }

  close(): void {
    cancelAnimationFrame(this.#frame);
  }

  #paint(): void {
    const width = Math.floor(this.#canvas.getBoundingClientRect().width);
    if (width < 2 * GUTTER) return;
    const theme = readTheme(this.#probe);
    const context = this.#prepare(width, theme);
    const tape = this.#tape;
    const [from, to] = this.viewport.range(tape.first, tape.end);
    this.#shown = tape.visible(from, to);
    const row = this.#rowHeight();
    const most = Math.max(0, this.#shown.length * row - (HEIGHT - AXIS));
    this.#scroll = this.viewport.live && !this.#drag && this.#selected === undefined ? most : Math.min(Math.max(this.#scroll, 0), most);
    this.#axis(context, theme, width, from, to);
    this.#crosses = 0;
    context.save();
    context.beginPath();
    context.rect(0, 0, width, HEIGHT - AXIS);
    context.clip();
    this.#shown.forEach((shown, i) => {
      const y = i * row - this.#scroll;
      if (y > -row && y < HEIGHT - AXIS) this.#paintRow(context, theme, shown, y, row, from, to, width);
    });
    context.restore();
    if (!tape.end) {
      context.fillStyle = theme.faint;
      context.fillText("No engine step yet. Send a request: each gets a row here.", GUTTER, HEIGHT / 2 - AXIS);
    }
    Object.assign(this.#canvas.dataset, {
      from: Math.round(from), to: Math.round(to), rows: this.#shown.length, steps: tape.end - tape.first,
      selected: this.#selected ?? "", stopped: this.#crosses,
    });
    this.#showTip();
  }

  #prepare(width: number, theme: Theme): CanvasRenderingContext2D {
    const scale = window.devicePixelRatio || 1;
    if (this.#canvas.width !== Math.round(width * scale)) this.#canvas.width = Math.round(width * scale);
    if (this.#canvas.height !== HEIGHT * scale) this.#canvas.height = HEIGHT * scale;
    const context = this.#canvas.getContext("2d")!;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.fillStyle = theme.paper;
    context.fillRect(0, 0, width, HEIGHT);
    context.font = "10px system-ui, sans-serif";
    context.textBaseline = "middle";
    return context;
  }

  #rowHeight(): number {
    const fit = (HEIGHT - AXIS) / Math.max(1, this.#shown.length);
    return Math.min(TALLEST_ROW, Math.max(LOWEST_ROW, Math.floor(fit)));
  }

  #axis(context: CanvasRenderingContext2D, theme: Theme, width: number, from: number, to: number): void {
    const y = HEIGHT - AXIS;
    const scale = (width - GUTTER) / (to - from);
    context.strokeStyle = theme.grid;
    context.fillStyle = theme.faint;
    context.textAlign = "center";
    for (const at of ticks(from, to, (width - GUTTER) / 90)) {
      const x = GUTTER + (at - from) * scale;
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, y + 3);
      context.stroke();
      if (x < width - 20) context.fillText(at.toLocaleString("en"), x, y + 9);
    }
    context.fillText("engine step", GUTTER + (width - GUTTER) / 2, y + 22);
    context.textAlign = "left";
    context.fillText(`${this.#shown.length} request${this.#shown.length === 1 ? "" : "s"}`, 8, y + 9);
  }

  #paintRow(
    context: CanvasRenderingContext2D, theme: Theme, row: Row, y: number, height: number, from: number, to: number, width: number,
  ): void {
    const scale = (width - GUTTER) / (to - from);
    const selected = row.number === this.#selected;
    if (selected) {
      context.fillStyle = theme.grid;
      context.fillRect(0, y, width, height);
    }
    if (height >= NAMED_ROW || selected) {
      if (height < NAMED_ROW) {
        context.fillStyle = theme.paper;
        context.fillRect(0, y + height / 2 - 7, GUTTER - 4, 14);
      }
      context.fillStyle = theme.text;
      context.fillText(shortId(row.id), 8, y + height / 2, GUTTER - 14);
    }
    const gap = height > 4 ? 1 : 0;
    let painted = -1;
    for (let i = firstEndingAfter(row.segments, from); i < row.segments.length; i++) {
      const segment = row.segments[i]!;
      if (segment.first >= to) break;
      const kind = kindOf(this.#tape.kinds[segment.kind]);
      const left = GUTTER + Math.max(0, segment.first - from) * scale;
      const right = GUTTER + (Math.min(segment.last + 1, to, this.#tape.end) - from) * scale;
      if (right <= painted) continue; // narrower than a pixel that is painted already
      painted = Math.max(left + 1, right);
      const thick = kind.works ? height - gap : Math.max(1, Math.round((height - gap) * 0.4));
      context.fillStyle = kind.color;
      context.fillRect(left, y + (height - gap - thick) / 2, Math.max(1, right - left), thick);
      if (kind.works && scale >= 6 && height >= 6) this.#cuts(context, theme, segment, y, height, from, to, scale);
    }
    const last = row.segments.at(-1);
    if (isStopped(row) && last && last.last + 1 > from && last.last + 1 <= to) {
      const x = Math.min(GUTTER + (last.last + 1 - from) * scale, width - LONGEST_ARM - 1); // whole at the edge
      this.#cross(context, theme, x, y + height / 2, height);
    }
  }

  /** Where a request was stopped: seen on low rows too, so it may reach beyond its own. */
  #cross(context: CanvasRenderingContext2D, theme: Theme, x: number, y: number, height: number): void {
    const arm = Math.min(LONGEST_ARM, Math.max(2, height / 2 - 1));
    for (const [color, width] of [[theme.paper, 4], [STOPPED.color, 2]] as const) {
      context.strokeStyle = color;
      context.lineWidth = width;
      context.beginPath();
      for (const slope of [-1, 1]) {
        context.moveTo(x - arm, y - slope * arm);
        context.lineTo(x + arm, y + slope * arm);
      }
      context.stroke();
    }
    context.lineWidth = 1;
    this.#crosses++;
  }

  /** Lines between the steps of one segment, where they are wide enough to be seen apart. */
  #cuts(
    context: CanvasRenderingContext2D, theme: Theme, segment: Segment, y: number, height: number, from: number, to: number, scale: number,
  ): void {
    context.fillStyle = theme.paper;
    const end = Math.min(segment.last + 1, to, this.#tape.end);
    for (let at = Math.max(segment.first, Math.ceil(from)); at <= end; at++) {
      context.fillRect(GUTTER + (at - from) * scale - 0.5, y, 1, height);
    }
  }

  #at(event: { clientX: number; clientY: number }): { row: Row | undefined; ordinal: number; inside: boolean } {
    const box = this.#canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    const y = event.clientY - box.top;
    const [from, to] = this.viewport.range(this.#tape.first, this.#tape.end);
    const ordinal = Math.floor(from + ((x - GUTTER) / (box.width - GUTTER)) * (to - from));
    const row = y < HEIGHT - AXIS ? this.#shown[Math.floor((y + this.#scroll) / this.#rowHeight())] : undefined;
    return { row, ordinal, inside: x >= GUTTER };
  }

  /** The tooltip of what is under the pointer now; none where it has left, or drags. */
  #showTip(): void {
    const at = this.#pointer;
    const box = this.#canvas.getBoundingClientRect();
    const over = at && !this.#drag && at.clientX >= box.left && at.clientX < box.right && at.clientY >= box.top && at.clientY < box.bottom;
    this.#tip.hidden = true;
    if (over) this.#describe(at);
  }

  #describe(at: { clientX: number; clientY: number }): void {
    const { row, ordinal, inside } = this.#at(at);
    const segment = row && inside ? this.#tape.segmentAt(row, ordinal) : undefined;
    const step = this.#tape.step(ordinal);
    this.#tip.hidden = !row || !segment || !step;
    if (!row || !segment || !step) return;
    const kind = kindOf(this.#tape.kinds[segment.kind]);
    const stored = this.#tape.stored(row, segment, ordinal);
    const lines = [
      `${row.id}${row.tenant && row.tenant !== "default" ? ` of ${row.tenant}` : ""}, step ${step.index}`,
      kind.works
        ? `${kind.label}: ${segment.tokens} token${segment.tokens === 1 ? "" : "s"}, ${this.#kv(stored)} in its KV`
        : kind.label === "preempted" ? `preempted: ${kind.why}` : `waiting${kind.why ? `, ${kind.label}: ${kind.why}` : ""}`,
      `the step: ${duration(step.duration)}, ${step.prefill} prefill + ${step.decode} decode tokens, KV of all ${this.#kv(step.kv)}`,
    ];
    if (isStopped(row) && segment === row.segments.at(-1)) lines.push(`${STOPPED.sign} stopped: ${row.reason}`);
    this.#tip.replaceChildren(...lines.map((line) => element("div", "", undefined, line)));
    const box = this.el.getBoundingClientRect();
    const room = box.width - this.#tip.offsetWidth - 8;
    this.#tip.style.left = `${Math.max(4, Math.min(at.clientX - box.left + 14, room))}px`;
    this.#tip.style.top = `${at.clientY - box.top + 16}px`;
  }

  /** So many tokens, and the blocks that they take. */
  #kv(tokens: number): string {
    const words = `${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`;
    if (!this.blockSize) return words;
    const blocks = Math.ceil(tokens / this.blockSize);
    return `${words} (${blocks.toLocaleString("en")} block${blocks === 1 ? "" : "s"})`;
  }

  #listen(): void {
    const canvas = this.#canvas;
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.#drag = { x: event.clientX, y: event.clientY, moved: false };
    });
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => {
      const click = this.#drag && !this.#drag.moved;
      this.#drag = undefined;
      if (click) this.#onSelect(this.#at(event).row?.number);
    });
    canvas.addEventListener("pointercancel", () => (this.#drag = undefined));
    canvas.addEventListener("pointerleave", () => {
      this.#pointer = undefined;
      this.#showTip();
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #wheel(event: WheelEvent): void {
    event.preventDefault();
    const box = this.#canvas.getBoundingClientRect();
    const by = event.deltaY || event.deltaX;
    if (event.shiftKey) this.#scroll += by;
    else {
      const at = (event.clientX - box.left - GUTTER) / (box.width - GUTTER);
      this.viewport.zoom(by > 0 ? 1.25 : 0.8, Math.min(Math.max(at, 0), 1), this.#tape.end - this.#tape.first);
    }
    this.draw();
  }

  #move(event: PointerEvent): void {
    const drag = this.#drag;
    this.#pointer = event.pointerType === "touch" ? undefined : { clientX: event.clientX, clientY: event.clientY };
    if (!drag) return this.#showTip();
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(dx, dy) < 4) return;
    const width = this.#canvas.getBoundingClientRect().width - GUTTER;
    this.viewport.pan((-dx / width) * this.viewport.span, this.#tape.end);
    this.#scroll -= dy;
    this.#drag = { x: event.clientX, y: event.clientY, moved: true };
    this.draw();
  }

  #key(event: KeyboardEvent): void {
    const { span } = this.viewport;
    const { end, first } = this.#tape;
    const actions: Record<string, () => void> = {
      ArrowLeft: () => this.viewport.pan(-0.1 * span, end),
      ArrowRight: () => this.viewport.pan(0.1 * span, end),
      ArrowUp: () => this.#step(-1),
      ArrowDown: () => this.#step(1),
      "+": () => this.viewport.zoom(0.8, 0.5, end - first),
      "=": () => this.viewport.zoom(0.8, 0.5, end - first),
      "-": () => this.viewport.zoom(1.25, 0.5, end - first),
      Home: () => this.viewport.pan(first - end, end),
      End: () => (this.viewport.live = true),
      Escape: () => this.#onSelect(undefined),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook's own shortcuts use the same keys
    action();
    this.draw();
  }

  #step(by: number): void {
    const at = this.#shown.findIndex((row) => row.number === this.#selected);
    const row = this.#shown[at < 0 ? this.#shown.length - 1 : Math.min(Math.max(at + by, 0), this.#shown.length - 1)];
    if (row) this.#onSelect(row.number);
  }

  #reveal(): void {
    const at = this.#shown.findIndex((row) => row.number === this.#selected);
    if (at < 0) return;
    const y = at * this.#rowHeight();
    if (y < this.#scroll || y > this.#scroll + HEIGHT - AXIS - TALLEST_ROW) this.#scroll = y - (HEIGHT - AXIS) / 2;
  }
}
