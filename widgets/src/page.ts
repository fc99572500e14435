// The elements on the page. `data-llmserve` names them and `data-*` gives their state, for tests.

import type { About, Panel } from "./messages.ts";
import { button, element } from "./dom.ts";
import { PANEL_HEIGHT } from "./layout.ts";
import { moment } from "./quantities.ts";

export type State = "waiting" | "live" | "silent" | "ended";

export const WINDOWS: [number, string][] = [[30, "30 s"], [120, "2 min"], [600, "10 min"]];

/** What the page knows of the other end: a silent kernel may compute, or be gone; the page cannot know. */
export function stateWords(state: State, silentFor: number): string {
  const asking = silentFor < 2 ? "asking the kernel …" : `asking the kernel … ${silentFor} s`;
  const silent = `no figures for ${moment(silentFor)}: the kernel is busy or gone`;
  return { waiting: asking, live: "live", silent, ended: "ended" }[state];
}

const CSS = `
.llmserve-dash { background: var(--jp-layout-color0, #fff); color: var(--jp-ui-font-color1, #212121);
  font: 13px/1.4 system-ui, sans-serif; padding: 4px 0 8px; min-width: 0; container-type: inline-size; }
.llmserve-dash .head { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 14px; padding: 4px 8px; }
.llmserve-dash .name { font-weight: 600; overflow-wrap: anywhere; }
.llmserve-dash .faint { color: var(--jp-ui-font-color2, #616161); }
.llmserve-dash .dot { display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 6px; background: #9e9e9e; }
.llmserve-dash[data-state="live"] .dot { background: #2e9e44; }
.llmserve-dash[data-state="silent"] .dot { background: #d16a00; }
.llmserve-dash .status { flex: 1 1 100%; min-height: 1.4em; overflow-wrap: anywhere; }
.llmserve-dash select { font: inherit; color: inherit; background: transparent; border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 3px; }
.llmserve-dash option { color: #212121; background: #fff; }
.llmserve-dash .hint { margin: 4px 8px 8px; padding: 8px 12px; border-left: 3px solid #1668b3; background: var(--jp-layout-color1, #f5f5f5); overflow-wrap: anywhere; }
.llmserve-dash code { font-family: var(--jp-code-font-family, monospace); font-size: 12px; background: transparent; color: inherit; }
.llmserve-dash .grid { display: grid; grid-template-columns: minmax(0, 1fr); gap: 4px; }
@container (min-width: 540px) { .llmserve-dash .grid { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@container (min-width: 820px) { .llmserve-dash .grid { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@container (min-width: 1400px) { .llmserve-dash .grid { grid-template-columns: repeat(4, minmax(0, 1fr)); } }
.llmserve-dash h3 { font-size: 13px; font-weight: 600; margin: 0; }
.llmserve-dash section { margin: 8px; position: relative; min-width: 0; }
.llmserve-dash .section-head { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 12px; margin-bottom: 2px; }
.llmserve-dash .legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 12px; }
.llmserve-dash .swatch { display: inline-flex; align-items: center; gap: 5px; }
.llmserve-dash .swatch i { width: 12px; height: 10px; }
.llmserve-dash .swatch i.thin { height: 4px; }
.llmserve-dash .why { padding: 6px 10px; background: var(--jp-layout-color1, #f5f5f5); border: 1px solid var(--jp-border-color2, #e0e0e0); border-radius: 4px; }
.llmserve-dash .bar { display: flex; align-items: center; gap: 8px; margin: 2px 0; }
.llmserve-dash .bar b { flex: 0 0 68px; font-weight: 500; }
.llmserve-dash .bar .ms { flex: 0 0 72px; text-align: right; font-variant-numeric: tabular-nums; }
.llmserve-dash .bar .track { flex: 1; min-width: 0; }
.llmserve-dash .bar .under { display: block; font-size: 11px; line-height: 1.3; overflow-wrap: anywhere; }
.llmserve-dash .bar .parts { display: flex; height: 14px; border-radius: 2px; overflow: hidden; }
.llmserve-dash .why .line { overflow-wrap: anywhere; }
.llmserve-dash canvas { display: block; width: 100%; height: 280px; cursor: crosshair; touch-action: none; border: 1px solid var(--jp-border-color2, #e0e0e0); box-sizing: border-box; }
.llmserve-dash .tip { position: absolute; z-index: 5; pointer-events: none; max-width: 420px; padding: 4px 8px; font-size: 12px; border-radius: 3px;
  background: var(--jp-layout-color0, #fff); border: 1px solid var(--jp-border-color1, #bdbdbd); box-shadow: 0 2px 6px rgba(0,0,0,.25); }
.llmserve-dash .scroll { max-height: 190px; overflow: auto; border: 1px solid var(--jp-border-color2, #e0e0e0); }
.llmserve-dash table { border-collapse: collapse; width: 100%; font-size: 12px; font-variant-numeric: tabular-nums; margin: 0; }
.llmserve-dash th { position: sticky; top: 0; text-align: left; font-weight: 600; white-space: nowrap; background: var(--jp-layout-color1, #f5f5f5); color: inherit; padding: 2px 8px; }
.llmserve-dash td { text-align: left; padding: 1px 8px; white-space: nowrap; color: inherit; background: transparent; }
.llmserve-dash tbody tr { cursor: pointer; background: transparent; }
.llmserve-dash tbody tr.selected { background: rgba(22, 104, 179, .28); }
.llmserve-dash td:first-child { max-width: 180px; overflow: hidden; text-overflow: ellipsis; }
.llmserve-dash table.calm :is(th, td):last-child { display: none; }
@container (max-width: 860px) { .llmserve-dash th, .llmserve-dash td { padding-left: 4px; padding-right: 4px; } .llmserve-dash td:first-child { max-width: 130px; } }
.llmserve-dash .waterfall { margin-top: 6px; min-height: 84px; }
.llmserve-dash .fall-bar { position: relative; height: 18px; margin-top: 4px; background: var(--jp-layout-color1, #f5f5f5); overflow: hidden; }
.llmserve-dash .fall-bar span { position: absolute; top: 0; height: 18px; min-width: 1px; }
.llmserve-dash .fall-bar span.thin { top: 5px; height: 8px; }
.llmserve-dash .fall-ends { display: flex; justify-content: space-between; font-size: 11px; }
.llmserve-dash .playground > h3 { margin-bottom: 2px; }
.llmserve-dash textarea, .llmserve-dash input { font: inherit; color: inherit; background: transparent; border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 3px; padding: 1px 6px; box-sizing: border-box; }
.llmserve-dash textarea { display: block; width: 100%; resize: vertical; margin-bottom: 4px; }
.llmserve-dash input { width: 74px; }
.llmserve-dash .unit { white-space: nowrap; }
.llmserve-dash .replies { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(180px, 100%), 1fr)); gap: 6px; margin: 4px 0 6px; }
.llmserve-dash .reply { border: 1px solid var(--jp-border-color2, #e0e0e0); border-radius: 3px; padding: 4px 8px; min-width: 0; font-size: 12px; }
.llmserve-dash .reply-text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 110px; overflow: auto; min-height: 1.4em; }
.llmserve-dash .reply > .faint { font-size: 11px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.llmserve-dash :disabled { opacity: .5; cursor: default; }
.llmserve-dash button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 3px; padding: 0 10px; cursor: pointer; }
.llmserve-dash button:hover { background: var(--jp-layout-color2, #eee); }
.llmserve-dash button[aria-pressed="true"] { background: #1668b3; color: #fff; }
.llmserve-dash :focus-visible { outline: 2px solid #1668b3; outline-offset: 1px; }
.llmserve-dash .cursor { position: absolute; top: 46px; bottom: 38px; background: rgba(128,128,128,.35); border-left: 1px solid var(--jp-ui-font-color2, #616161); pointer-events: none; box-sizing: border-box; }
.llmserve-dash .cursor::after { content: attr(data-time); position: absolute; right: 0; bottom: -16px; transform: translateX(50%); font-size: 10px; white-space: nowrap; background: var(--jp-layout-color0, #fff); }
.llmserve-dash .cursor::before { content: attr(data-figures); position: absolute; left: calc(100% + 4px); top: 2px; padding: 0 3px; font-size: 10px; line-height: 1.3; white-space: pre; background: color-mix(in srgb, var(--jp-layout-color0, #fff) 85%, transparent); border-radius: 2px; }
.llmserve-dash .cursor.flipped::before { left: auto; right: calc(100% + 5px); }
.llmserve-dash .cursor[data-figures=""]::before { display: none; }
.llmserve-dash .cursor[hidden] { display: none; }
.llmserve-dash .panel { position: relative; user-select: none; min-width: 0; height: ${PANEL_HEIGHT}px; overflow: hidden; }
`;

export class Page {
  readonly root = element("div", "llmserve-dash", "dashboard");
  readonly #name = element("span", "name");
  readonly #place = element("span", "faint");
  readonly #state = element("span", "", "state");
  readonly #status = element("div", "status faint", "status");
  readonly #hint = element("div", "hint", "empty");
  readonly grid = element("div", "grid");
  readonly #pause = button("Pause", "pause", "stand still; figures are taken in meanwhile", () => this.#togglePause());
  readonly #unzoom = button("Whole time", "unzoom", "show the newest figures again (or double-click a panel)", () => this.onZoomReset());
  onPause: (paused: boolean) => void = () => {};
  onZoomReset: () => void = () => {};
  readonly #windows = document.createElement("select");
  readonly probe = element("span", "");
  readonly panels = new Map<string, HTMLElement>();

  constructor(el: HTMLElement, onWindow: () => void) {
    const style = document.createElement("style");
    style.textContent = CSS;
    for (const [seconds, words] of WINDOWS) this.#windows.add(new Option(words, String(seconds)));
    this.#windows.value = "120";
    this.#windows.dataset["llmserve"] = "window";
    this.#windows.setAttribute("aria-label", "time shown");
    this.#windows.addEventListener("change", onWindow);
    const head = element("div", "head");
    const state = element("span", "");
    state.append(element("span", "dot"), this.#state);
    this.#unzoom.hidden = true;
    head.append(this.#name, this.#place, this.#windows, this.#pause, this.#unzoom, state, this.#status);
    this.#hint.hidden = true;
    this.probe.hidden = true;
    this.root.append(style, head, this.#hint, this.grid, this.probe);
    this.setState("waiting");
    el.append(this.root);
  }

  /** Put sections around the charts. */
  place(above: HTMLElement[], below: HTMLElement[]): void {
    this.grid.before(...above);
    this.grid.after(...below);
  }

  get window(): number {
    return Number(this.#windows.value);
  }

  /** Width of one panel's cell, in pixels; 0 while the page does not show it. */
  get panelWidth(): number {
    return Math.floor(this.panels.values().next().value?.getBoundingClientRect().width ?? 0);
  }

  describe(about: About, window: number): void {
    this.#name.textContent = about.model;
    this.#place.textContent = `${about.place} · figures of the last ${window} s`;
    this.#hint.replaceChildren(
      "No requests yet. Send one from the playground below, or: ",
      code("%%llmserve"),
      " with a prompt below it, ",
      code('session.generate("Hello")'),
      ", or any OpenAI client at ",
      code(about.url),
      ".",
    );
  }

  setPanels(panels: Panel[]): void {
    for (const [i, panel] of panels.entries()) {
      let el = this.panels.get(panel.id);
      if (!el) {
        el = element("div", "panel", `panel-${panel.id}`);
        el.tabIndex = 0;
        el.setAttribute("role", "group");
        el.setAttribute("aria-label", `${panel.title}: arrows move the cursor, + and - zoom, Escape shows the whole time, 1 to 9 switch lines`);
        el.dataset["lmSuppressShortcuts"] = "true"; // its keys are no commands to the notebook
        this.panels.set(panel.id, el);
      }
      if (this.grid.children[i] !== el) this.grid.insertBefore(el, this.grid.children[i] ?? null);
    }
  }

  /** `silentFor`: seconds since anything came. */
  setState(state: State, silentFor = 0): void {
    this.root.dataset["state"] = state;
    this.#state.textContent = stateWords(state, silentFor);
  }

  setStatus(text: string): void {
    this.#status.textContent = text;
  }

  setEmpty(empty: boolean): void {
    this.#hint.hidden = !empty;
  }

  setZoom(zoom: [number, number] | undefined): void {
    this.#unzoom.hidden = !zoom;
    this.root.dataset["zoom"] = zoom ? zoom.map((t) => t.toFixed(1)).join("-") : "";
  }

  #togglePause(): void {
    const paused = this.root.dataset["paused"] !== "true";
    this.root.dataset["paused"] = String(paused);
    this.#pause.textContent = paused ? "Go on" : "Pause";
    this.#pause.setAttribute("aria-pressed", String(paused));
    this.onPause(paused);
  }

  /** Whether something is known that the panels do not show yet. */
  setDrawing(drawing: boolean): void {
    this.root.dataset["drawing"] = String(drawing);
  }

  setCounts(points: number, marks: number, seq: number): void {
    Object.assign(this.root.dataset, { points, marks, seq });
  }
}

function code(text: string): HTMLElement {
  const el = document.createElement("code");
  el.textContent = text;
  return el;
}
