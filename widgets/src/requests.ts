// The table of requests with its filters, and the waterfall of the selected one.

import { element } from "./dom.ts";
import { kindOf, STOPPED } from "./kinds.ts";
import { duration, moment } from "./quantities.ts";
import { isStopped, type Row, type Tape } from "./tape.ts";
import { life } from "./waterfall.ts";
import { swatch } from "./why.ts";

const MOST_ROWS = 200;
const COLUMNS: [string, string][] = [
  ["request", ""], ["came", "time since the session began, as on the charts"], ["tenant", ""], ["class", "priority: lower goes first"],
  ["state", ""], ["prompt (tokens)", ""], ["reply (tokens)", ""], ["TTFT", "time to its first token"], ["E2E", "time to its end"],
  ["preempted", "times that it lost its KV to others"],
];
const STATES = ["waiting", "running", "done", "stopped", "refused"] as const;
type State = (typeof STATES)[number];

const SPAN_LABELS: Record<string, string> = { queue: "queue", stall: "stall" };
const STATES_OF_THEIR_OWN = ["waiting", "preempted"];
const SPAN_COLORS: Record<string, string> = { queue: "#d1495b", stall: "#9e9e9e" };

export class Requests {
  readonly el = element("section", "requests", "requests");
  readonly #tape: Tape;
  readonly #onSelect: (number: number | undefined) => void;
  readonly #table = element("table");
  readonly #body = element("tbody");
  readonly #filters: Record<"tenant" | "class" | "state", HTMLSelectElement>;
  readonly #fall = element("div", "waterfall", "waterfall");
  readonly #count = element("span", "faint", "requests-count");
  #selected: number | undefined;
  #drawn = "";

  constructor(tape: Tape, onSelect: (number: number | undefined) => void) {
    this.#tape = tape;
    this.#onSelect = onSelect;
    this.#filters = { tenant: this.#filter("tenant"), class: this.#filter("class"), state: this.#filter("state") };
    setOptions(this.#filters.state, "any state", [...STATES]);
    const head = element("div", "section-head");
    head.append(element("h3", "", undefined, "Requests"), ...Object.values(this.#filters), this.#count);
    const table = this.#table;
    const titles = table.createTHead().insertRow();
    for (const [column, title] of COLUMNS) titles.append(Object.assign(element("th", "", undefined, column), { title }));
    table.append(this.#body);
    const scroll = element("div", "scroll");
    scroll.append(table);
    this.el.append(head, scroll, this.#fall);
    this.#body.addEventListener("click", (event) => this.#clicked(event));
    this.#body.dataset["lmSuppressShortcuts"] = "true"; // its keys are no commands to the notebook
    this.#body.addEventListener("keydown", (event) => this.#key(event));
  }

  select(number: number | undefined): void {
    this.#selected = number;
    this.#drawn = "";
  }

  /** `now` is the time of the newest figure. */
  draw(now: number): void {
    const rows = [...this.#tape.rows.values()].sort((a, b) => b.number - a.number);
    setOptions(this.#filters.tenant, "any tenant", names(rows.map((row) => row.tenant ?? "")));
    setOptions(this.#filters.class, "any class", names(rows.map((row) => String(row.priority))));
    const found = rows.filter((row) => this.#passes(row));
    this.#count.textContent = `${found.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}${found.length > MOST_ROWS ? `, the newest ${MOST_ROWS} shown` : ""}`;
    const texts = found.slice(0, MOST_ROWS).map((row) => ({ row, cells: cells(row) }));
    const drawn = JSON.stringify([this.#selected, texts.map((text) => text.cells)]);
    if (drawn !== this.#drawn) {
      this.#drawn = drawn;
      const focused = this.#focused?.dataset["request"];
      this.#table.classList.toggle("calm", !found.some((row) => row.preemptions));
      this.#body.replaceChildren(...texts.map(({ row, cells }) => this.#line(row, cells)));
      const stop = this.#at(focused) ?? this.#at(String(this.#selected)) ?? this.#body.rows[0];
      if (stop) stop.tabIndex = 0; // one stop for the whole table: arrows go on from there
      if (focused !== undefined) stop?.focus({ preventScroll: true });
    }
    this.#waterfall(now);
  }

  #line(row: Row, texts: string[]): HTMLTableRowElement {
    const line = element("tr", row.number === this.#selected ? "selected" : "");
    line.dataset["request"] = String(row.number);
    line.tabIndex = -1;
    line.append(...texts.map((text) => element("td", "", undefined, text)));
    line.cells[0]!.title = texts[0]!; // a long one is cut in a narrow column
    return line;
  }

  #waterfall(now: number): void {
    const row = this.#selected === undefined ? undefined : this.#tape.rows.get(this.#selected);
    if (!row) {
      this.#fall.replaceChildren(element("span", "faint", undefined, "Click a request here or on the tape to see where its time went."));
      return;
    }
    const { start, end, spans, totals } = life(row, this.#tape, now);
    const length = Math.max(end - start, 1e-6);
    const bar = element("div", "fall-bar");
    for (const span of spans) {
      const piece = element("span", kindOf(span.kind).works ? "" : "thin");
      piece.style.left = `${(100 * (span.start - start)) / length}%`;
      piece.style.width = `${(100 * (span.end - span.start)) / length}%`;
      piece.style.background = color(span.kind);
      piece.title = `${label(span.kind)}: ${duration(span.end - span.start)}, from ${duration(span.start - start)}`;
      bar.append(piece);
    }
    const legend = element("div", "legend");
    for (const [kind, seconds] of totals) legend.append(swatch(`${label(kind)} ${duration(seconds)}`, color(kind)));
    const state = row.ended === null ? "not ended yet" : words(row);
    const ends = element("div", "fall-ends");
    ends.append(element("span", "", undefined, "0 ms"), element("span", "", undefined, duration(length)));
    this.#fall.replaceChildren(element("b", "", undefined, `${row.id}, ${state}`), bar, ends, legend);
  }

  #passes(row: Row): boolean {
    const { tenant, class: level, state } = this.#filters;
    return (
      (!tenant.value || row.tenant === tenant.value) &&
      (!level.value || String(row.priority) === level.value) &&
      (!state.value || stateOf(row) === state.value)
    );
  }

  #filter(name: string): HTMLSelectElement {
    const select = element("select", "", `filter-${name}`);
    select.setAttribute("aria-label", `filter by ${name}`);
    select.addEventListener("change", () => this.#onSelect(this.#selected));
    return select;
  }

  get #focused(): HTMLElement | undefined {
    const active = document.activeElement;
    return active instanceof HTMLElement && this.#body.contains(active) ? active : undefined;
  }

  #at(number: string | undefined): HTMLTableRowElement | undefined {
    return [...this.#body.rows].find((line) => line.dataset["request"] === number);
  }

  #key(event: KeyboardEvent): void {
    const line = (event.target as HTMLElement).closest("tr");
    const to = { ArrowDown: line?.nextElementSibling, ArrowUp: line?.previousElementSibling }[event.key];
    if (to instanceof HTMLElement) {
      line!.tabIndex = -1;
      to.tabIndex = 0;
      to.focus();
    } else if (event.key === "Enter") this.#clicked(event);
    else if (event.key === "Escape") this.#onSelect(undefined);
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    event.stopPropagation(); // a notebook's own shortcuts use the same keys
  }

  #clicked(event: Event): void {
    const line = (event.target as HTMLElement).closest("tr");
    if (line) this.#onSelect(Number(line.dataset["request"]));
  }
}

export function stateOf(row: Row): State {
  if (row.ended === null) return row.dispatched === null && row.submitted !== null ? "waiting" : "running";
  if (isStopped(row)) return "stopped";
  return row.reason === null || ["stop", "length"].includes(row.reason) ? "done" : "refused"; // null: nobody knows how
}

function cells(row: Row): string[] {
  const since = (t: number | null) => duration(t === null || row.submitted === null ? null : t - row.submitted);
  const count = (tokens: number | null) => tokens?.toLocaleString("en") ?? "–";
  return [
    row.id, row.submitted === null ? "–" : moment(row.submitted), row.tenant ?? "–", String(row.priority), words(row),
    count(row.promptTokens), count(row.tokens), since(row.first), since(row.ended), row.preemptions ? String(row.preemptions) : "",
  ];
}

function words(row: Row): string {
  const state = stateOf(row);
  const sign = state === "stopped" ? `${STOPPED.sign} ` : "";
  return row.reason === null ? state : `${sign}${state}: ${row.reason}`;
}

function names(values: string[]): string[] {
  return [...new Set(values)].filter(Boolean).sort();
}

function setOptions(select: HTMLSelectElement, any: string, values: string[]): void {
  const wanted = ["", ...values].join("\n");
  if (select.dataset["options"] === wanted) return;
  const { value } = select;
  select.replaceChildren(new Option(any, ""), ...values.map((name) => new Option(name, name)));
  select.value = values.includes(value) ? value : "";
  select.dataset["options"] = wanted;
}

function label(kind: string): string {
  const { label, works } = kindOf(kind);
  return SPAN_LABELS[kind] ?? (works || STATES_OF_THEIR_OWN.includes(label) ? label : `waiting, ${label}`);
}

function color(kind: string): string {
  return SPAN_COLORS[kind] ?? kindOf(kind).color;
}
