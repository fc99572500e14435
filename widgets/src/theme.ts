// Colours from JupyterLab's own variables, so that light and dark follow its theme.

export interface Theme {
  paper: string;
  text: string;
  faint: string;
  grid: string;
  mark: string;
  inks: string[];
}

const LIGHT_INKS = ["#1668b3", "#d16a00", "#2e8b3d", "#8a4fbf", "#c2375d", "#00798c", "#8a6d3b"];
const DARK_INKS = ["#5eb1ff", "#ffab4a", "#6fd17c", "#c79bf2", "#ff7d9c", "#4fc3d0", "#d3b47c"];

const VARIABLES = {
  paper: "var(--jp-layout-color0, #ffffff)",
  text: "var(--jp-ui-font-color1, #212121)",
  faint: "var(--jp-ui-font-color2, #616161)",
  grid: "var(--jp-border-color2, #e0e0e0)",
};

export const PRINT: Theme = {
  paper: "#ffffff",
  text: "#212121",
  faint: "#616161",
  grid: "#e0e0e0",
  mark: "#616161",
  inks: LIGHT_INKS,
};

/** The theme at `probe`, an unseen element whose colour is changed to have the browser compute it. */
export function readTheme(probe: HTMLElement): Theme {
  const resolve = (color: string) => {
    probe.style.color = color;
    return getComputedStyle(probe).color;
  };
  const paper = resolve(VARIABLES.paper);
  const faint = resolve(VARIABLES.faint);
  return {
    paper,
    text: resolve(VARIABLES.text),
    faint,
    grid: resolve(VARIABLES.grid),
    mark: faint,
    inks: isDark(paper) ? DARK_INKS : LIGHT_INKS,
  };
}

/** Whether a computed colour, `rgb(…)` or `rgba(…)`, is nearer to black than to white. */
export function isDark(color: string): boolean {
  const [r = 255, g = 255, b = 255] = color.match(/[\d.]+/g)?.map(Number) ?? [];
  return 0.299 * r + 0.587 * g + 0.114 * b < 128;
}
