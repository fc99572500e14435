// The part of plotly.js that the dashboard uses; @types/plotly.js describes another major version.
declare module "plotly.js-basic-dist-min" {
  export type Data = Record<string, unknown>;
  export type Layout = Record<string, unknown>;
  export type Config = Record<string, unknown>;
  interface Picture {
    format: "png";
    width: number;
    height: number;
    scale?: number;
  }
  const Plotly: {
    react(el: HTMLElement, data: Data[], layout: Layout, config: Config): Promise<unknown>;
    newPlot(el: HTMLElement, data: Data[], layout: Layout, config: Config): Promise<unknown>;
    purge(el: HTMLElement): void;
    toImage(figure: { data: Data[]; layout: Layout }, options: Picture): Promise<string>;
  };
  export default Plotly;
}
