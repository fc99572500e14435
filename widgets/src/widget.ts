// The part of anywidget's front-end contract that is used here.

import type { ToKernel } from "./messages.ts";

export interface ControlModel {
  get(trait: "value" | "index"): unknown;
  set(trait: "value" | "index", value: unknown): void;
  save_changes(): void;
}

type OnMessage = (content: unknown, buffers: (DataView | ArrayBuffer)[]) => void;

export interface Model {
  send(content: ToKernel & { page?: string }, callbacks?: undefined, buffers?: ArrayBuffer[]): void;
  on(event: "msg:custom", callback: OnMessage): void;
  off(event: "msg:custom", callback: OnMessage): void;
  widget_manager: { get_model(id: string): Promise<ControlModel> };
}

export interface Context {
  model: Model;
  el: HTMLElement;
}

export type Cleanup = () => void;

export interface Widget {
  render(context: Context): Cleanup | Promise<Cleanup>;
}

export function asView(buffer: DataView | ArrayBuffer): DataView {
  return buffer instanceof ArrayBuffer ? new DataView(buffer) : buffer;
}
