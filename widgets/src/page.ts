// The elements on the page. `data-llmserve` names them and `data-*` tells their state, for tests.

import type { About, Panel } from "./messages.ts";
import { PANEL_HEIGHT } from "./layout.ts";

export type State = "waiting" | "live" | "silent" | "ended";

export const WINDOWS: [number, string][] = [[30, "30 s"], [120, "2 min"], [600, "10 min"]];

const STATE_WORDS: Record<State, string> = {
  waiting: "asking the kernel …",
  live: "live",
  silent: "no figures from the kernel",
  ended: "ended",
};

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
@container (min-width: 1500px) { .llmserve-dash .grid { grid-template-columns: repeat(5, minmax(0, 1fr)); } }
.llmserve-dash .panel { min-width: 0; height: ${PANEL_HEIGHT}px; overflow: hidden; }
`;

export class Page {
  readonly root = element("div", "llmserve-dash", "dashboard");
  readonly #name = element("span", "name");
  readonly #place = element("span", "faint");
  readonly #state = element("span", "", "state");
  readonly #status = element("div", "status faint", "status");
  readonly #hint = element("div", "hint", "empty");
  readonly #grid = element("div", "grid");
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
    head.append(this.#name, this.#place, state, this.#windows, this.#status);
    this.#hint.hidden = true;
    this.probe.hidden = true;
    this.root.append(style, head, this.#hint, this.#grid, this.probe);
    this.setState("waiting");
    el.append(this.root);
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
    this.#place.textContent = `${about.engine} on ${about.device} · figures of the last ${window} s`;
    this.#hint.replaceChildren(
      "No requests yet. Send one: ",
      code("%%llmserve"),
      " with a prompt below it, ",
      code('session.generate("Hello")'),
      ", or any OpenAI client at ",
      code(about.url),
      ".",
    );
  }

  setPanels(panels: Panel[]): void {
    for (const panel of panels) {
      if (this.panels.has(panel.id)) continue;
      const el = element("div", "panel", `panel-${panel.id}`);
      this.#grid.append(el);
      this.panels.set(panel.id, el);
    }
  }

  setState(state: State): void {
    this.root.dataset["state"] = state;
    this.#state.textContent = STATE_WORDS[state];
  }

  setStatus(text: string): void {
    this.#status.textContent = text;
  }

  setEmpty(empty: boolean): void {
    this.#hint.hidden = !empty;
  }

  setCounts(points: number, marks: number, seq: number): void {
    Object.assign(this.root.dataset, { points, marks, seq });
  }
}

function element(tag: "div" | "span", className: string, name?: string): HTMLElement {
  const el = document.createElement(tag);
  el.className = className;
  if (name) el.dataset["llmserve"] = name;
  return el;
}

function code(text: string): HTMLElement {
  const el = document.createElement("code");
  el.textContent = text;
  return el;
}
