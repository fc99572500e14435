// What plotly draws, as plain values. Pure.

import type { Data, Layout } from "plotly.js-basic-dist-min";
import { clockUnit, duration, number, timeTicks, unitOf } from "./quantities.ts";
import type { KnobValue, Line, Mark, Panel } from "./messages.ts";
import type { Span } from "./rows.ts";
import type { Theme } from "./theme.ts";
import { thin } from "./thin.ts";

export const PANEL_HEIGHT = 210;
export const MAX_POINTS = 400;
/** The chart ends this long after the newest row at least, so that a young one is not a smear. */
const YOUNG_S = 10;
/** Labels of the time axis, or some more. */
const TIMES = 4;

export interface View {
  panel: Panel;
  theme: Theme;
  width: number;
  /** Seconds shown. */
  window: number;
  now: number;
  marks: Mark[];
  /** A span of time chosen on the page, instead of the newest `window` seconds. */
  zoom?: [number, number] | undefined;
  /** Lines that are switched off, by `lineKey`. */
  off?: ReadonlySet<string>;
}

export function lineKey(panel: Panel, line: Line): string {
  return `${panel.id}/${line.column}`;
}

/** What is drawn of a panel's figures: times in ms are in ms, s or min by the highest of them. */
export function axisUnit(panel: Panel, top: number): { name: string; factor: number } {
  if (panel.unit !== "ms") return { name: panel.unit, factor: 1 };
  const unit = unitOf(top / 1e3);
  return { name: unit.name, factor: 1e-3 / unit.seconds };
}

export function traces(view: View, span: Span, columns: string[], top: number): Data[] {
  const { panel, theme } = view;
  const { factor } = axisUnit(panel, top);
  return panel.lines.map((line, i) => {
    const points = thin(span.times, span.columns[columns.indexOf(line.column)]!, MAX_POINTS);
    return {
      type: "scatter",
      mode: "lines",
      name: line.label,
      visible: view.off?.has(lineKey(panel, line)) ? "legendonly" : true,
      x: points.x,
      y: factor === 1 ? points.y : points.y.map((y) => (y === null ? null : y * factor)),
      connectgaps: false,
      line: {
        color: theme.inks[i % theme.inks.length],
        width: 1.75,
        shape: panel.step ? "hv" : "linear",
      },
      hoverinfo: "skip", // the cursor shows the figures of all panels
    };
  });
}

/** An unseen line of points along the top: what one hovers over to read a knob change. */
export function markTrace(view: View, top: number): Data {
  const marks = shown(view);
  return {
    type: "scatter",
    mode: "markers",
    name: "knobs",
    showlegend: false,
    x: marks.map((mark) => mark.t),
    y: marks.map(() => top * axisUnit(view.panel, top).factor),
    cliponaxis: false,
    marker: { symbol: "triangle-down", size: 8, color: view.theme.mark },
    text: marks.map(describe),
    hovertemplate: "%{text}<extra></extra>",
  };
}

export function layout(view: View, top: number): Layout {
  const { panel, theme } = view;
  const unit = axisUnit(panel, top);
  const [start, end] = range(view);
  const times = timeTicks(start, end, TIMES);
  const axis = {
    color: theme.faint,
    gridcolor: theme.grid,
    linecolor: theme.grid,
    zeroline: false,
    fixedrange: true,
    tickfont: { size: 10 },
  };
  return {
    width: view.width,
    height: PANEL_HEIGHT,
    margin: MARGIN,
    paper_bgcolor: theme.paper,
    plot_bgcolor: theme.paper,
    font: { color: theme.text, family: "system-ui, sans-serif", size: 11 },
    title: {
      text: `${panel.title} (${unit.name})`,
      font: { size: 13 },
      x: 0, xref: "container", pad: { l: 8, t: 6 }, y: 1, yref: "container", yanchor: "top",
    },
    showlegend: true,
    legend: {
      orientation: "h", x: 0, y: 1, yanchor: "bottom", xanchor: "left",
      font: { size: 10 }, bgcolor: "rgba(0,0,0,0)",
    },
    hovermode: "closest",
    xaxis: {
      ...axis,
      range: [start, end],
      tickmode: "array",
      tickvals: times.at,
      ticktext: times.words,
      title: { text: `time (${clockUnit(end)})`, font: { size: 10 }, standoff: 6 },
    },
    yaxis: { ...axis, range: [0, top * unit.factor], nticks: 5, tickformat: ",.4~r" }, // r: no exponent
    shapes: shown(view).map((mark) => ({
      type: "line", xref: "x", yref: "paper", x0: mark.t, x1: mark.t, y0: 0, y1: 1,
      line: { color: theme.mark, width: 1, dash: "dot" },
    })),
  };
}

/** The figures of a panel at the cursor, a line each, a time with its unit; what has no value
 * then is left out. */
export function reading(panel: Panel, columns: string[], values: number[] | undefined): string {
  const lines = panel.lines.map((line) => [line.label, values?.[columns.indexOf(line.column)]] as const);
  return lines
    .filter(([, value]) => value !== undefined && Number.isFinite(value))
    .map(([label, value]) => `${label}: ${panel.unit === "ms" ? duration(value! / 1e3) : number(value!)}`)
    .join("\n");
}

export const MARGIN = { l: 56, r: 14, t: 46, b: 38 };

export function range(view: Pick<View, "now" | "window" | "zoom">): [number, number] {
  if (view.zoom) return view.zoom;
  const end = Math.max(view.now, YOUNG_S);
  return [Math.max(0, end - view.window), end];
}

/** The end of the y axis: a little above the highest value shown, never 0. */
export function ceiling(span: Span, panel: Panel, columns: string[]): number {
  let high = 0;
  for (const line of panel.lines) {
    for (const value of span.columns[columns.indexOf(line.column)]!) {
      if (value > high) high = value;
    }
  }
  if (panel.total !== null && high > 0.5 * panel.total) return Math.max(panel.total, high);
  if (panel.unit === "requests") return Math.max(4, Math.ceil(high * 1.1));
  return high > 0 ? high * 1.1 : 1;
}

export function describe(mark: Mark): string {
  const lines = Object.entries(mark.changed).map(([name, [before, after]]) => {
    const kept = mark.satisfied[name];
    const clamped = mark.clamped.includes(name) ? ", held at its ceiling" : "";
    const keeps = kept === undefined ? "" : `, kept by all from step ${kept}`;
    return `<b>${escape(name)}</b>: ${word(before)} → ${word(after)}${clamped}${keeps}`;
  });
  const step = mark.step === null ? "" : ` at engine step ${mark.step}`;
  return [...lines, `by ${escape(mark.source)}${step}`].join("<br>");
}

function shown(view: View): Mark[] {
  const [start, end] = range(view);
  return view.marks.filter((mark) => mark.t >= start && mark.t <= end);
}

function word(value: KnobValue): string {
  return value === null ? "none" : escape(String(value));
}

function escape(text: string): string {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
}
