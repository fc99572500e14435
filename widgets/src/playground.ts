// A prompt tried by hand, and a load at a chosen rate. What runs is the kernel's; here are its
// buttons and its words.

import { button, element } from "./dom.ts";
import type { RepliesMessage, ToKernel } from "./messages.ts";
import { isEnded, loadWords, Replies, copyFigures, type Reply } from "./replies.ts";

const COPIES = [1, 2, 4, 8, 16];
const FIRST_TOKENS = 100;
const FIRST_RATE = 5;

export class Playground {
  readonly el = element("section", "playground", "playground");
  readonly #say: (message: ToKernel) => void;
  readonly #replies = new Replies();
  readonly #prompt = element("textarea", "", "prompt");
  readonly #copies = element("select", "", "copies");
  readonly #tokens = element("input", "", "reply-tokens");
  readonly #rate = element("input", "", "load-rate");
  readonly #send = button("Send", "send", "ask the model (Ctrl+Enter in the prompt)", () => this.#ask());
  readonly #stop = button("Stop", "stop", "cancel what still runs; its places are free at once", () => this.#say({ kind: "play", act: "stop" }));
  readonly #load = button("Start load", "load", "requests at random times, so many a second on average", () => this.#toggleLoad());
  readonly #words = element("span", "faint", "play-words");
  readonly #loadWords = element("span", "faint", "load-words");
  readonly #list = element("div", "replies", "replies");
  #shown: HTMLElement[] = [];
  #enabled = true;

  constructor(say: (message: ToKernel) => void) {
    this.#say = say;
    this.el.hidden = true; // until the kernel says that it has one: a report has none
    this.el.setAttribute("aria-label", "playground");
    this.#prompt.rows = 2;
    this.#prompt.placeholder = "A prompt for this model";
    this.#prompt.setAttribute("aria-label", "prompt");
    for (const n of COPIES) this.#copies.add(new Option(n === 1 ? "1 copy" : `${n} copies`, String(n)));
    this.#copies.setAttribute("aria-label", "copies at once");
    number(this.#tokens, FIRST_TOKENS, 1, 1024, "1", "most tokens of a reply");
    number(this.#rate, FIRST_RATE, 0.1, 200, "any", "requests per second of the load");
    this.el.dataset["lmSuppressShortcuts"] = "true"; // typing is no command to the notebook
    this.el.addEventListener("keydown", (event) => this.#key(event));
    const title = element("h3", "", undefined, "Playground");
    const ask = element("div", "section-head");
    ask.append(this.#copies, labelled(this.#tokens, "tokens at most"), this.#send, this.#stop, this.#words);
    const load = element("div", "section-head");
    load.append(element("b", "", undefined, "Load"), labelled(this.#rate, "requests/s"), this.#load, this.#loadWords);
    this.el.append(title, this.#prompt, ask, this.#list, load);
    this.#draw();
  }

  /** False where something before it is missing. */
  take(message: RepliesMessage): boolean {
    if (!this.#replies.take(message)) return false;
    this.el.hidden = false;
    const { limits } = this.#replies;
    if (message.whole && limits) {
      this.#prompt.maxLength = limits.text;
      this.#tokens.max = String(limits.max_tokens);
      this.#rate.max = String(limits.rate);
      for (const option of this.#copies.options) option.disabled = Number(option.value) > limits.copies;
    }
    this.#draw();
    return true;
  }

  /** Where the session is over, or nobody answers: what was said stays, and nothing can be asked. */
  enable(enabled: boolean): void {
    if (this.#enabled === enabled) return;
    this.#enabled = enabled;
    this.#draw();
  }

  #ask(): void {
    const text = this.#prompt.value;
    if (!text.trim()) return this.#prompt.focus();
    this.#say({ kind: "play", act: "send", text, copies: Number(this.#copies.value), max_tokens: valueOf(this.#tokens) });
  }

  #toggleLoad(): void {
    if (this.#replies.load) this.#say({ kind: "play", act: "unload" });
    else this.#say({ kind: "play", act: "load", rate: valueOf(this.#rate) });
  }

  #key(event: KeyboardEvent): void {
    event.stopPropagation();
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.target !== this.#prompt) return;
    event.preventDefault();
    this.#ask();
  }

  #draw(): void {
    const { copies, load, running, summary, words } = this.#replies;
    this.#send.disabled = !this.#enabled;
    this.#stop.disabled = !this.#enabled || !running;
    this.#load.disabled = !this.#enabled;
    this.#load.textContent = load ? "Stop load" : "Start load";
    this.#load.setAttribute("aria-pressed", String(load !== null));
    this.#rate.disabled = !this.#enabled || load !== null;
    this.#words.textContent = words || summary;
    this.#loadWords.textContent = load ? loadWords(load) : "";
    Object.assign(this.el.dataset, { running, loading: load !== null });
    if (this.#shown.length !== copies.length) {
      this.#shown = copies.map(() => card());
      this.#list.replaceChildren(...this.#shown);
    }
    copies.forEach((copy, i) => show(this.#shown[i]!, copy));
  }
}

function card(): HTMLElement {
  const el = element("div", "reply", "reply");
  el.append(element("div", "reply-text", "reply-text"), element("div", "faint", "reply-figures"));
  return el;
}

function show(el: HTMLElement, copy: Reply): void {
  const [text, figures] = el.children as unknown as [HTMLElement, HTMLElement];
  el.dataset["state"] = isEnded(copy) ? "ended" : copy.state;
  if (text.textContent !== copy.text) {
    const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
    text.textContent = copy.text;
    if (atEnd) text.scrollTop = text.scrollHeight; // follows what is written, unless one reads above
  }
  figures.textContent = copyFigures(copy);
}

function number(el: HTMLInputElement, value: number, low: number, high: number, step: string, label: string): void {
  Object.assign(el, { type: "number", value: String(value), min: String(low), max: String(high), step });
  el.setAttribute("aria-label", label);
}

function valueOf(el: HTMLInputElement): number {
  const value = Number.isFinite(el.valueAsNumber) ? el.valueAsNumber : Number(el.min);
  const within = Math.min(Math.max(value, Number(el.min)), Number(el.max));
  el.value = String(within);
  return within;
}

function labelled(el: HTMLElement, unit: string): HTMLElement {
  const label = element("label", "unit");
  label.append(el, ` ${unit}`);
  return label;
}
