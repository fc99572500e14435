// What is stored in a notebook instead of the dashboard: it asks the kernel for the dashboard.

import { asView, type Cleanup, type Context, type Model, type Widget } from "./widget.ts";

async function load(model: Model): Promise<Widget> {
  const code = await new Promise<DataView>((resolve) => {
    const heard = (content: unknown, buffers: (DataView | ArrayBuffer)[]) => {
      if ((content as { kind: string }).kind !== "module" || !buffers[0]) return;
      model.off("msg:custom", heard);
      resolve(asView(buffers[0]));
    };
    model.on("msg:custom", heard);
    model.send({ kind: "module" });
  });
  const blob = new Blob([code as DataView<ArrayBuffer>], { type: "text/javascript" });
  const url = URL.createObjectURL(blob);
  try {
    return ((await import(url)) as { default: Widget }).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}

export default () => {
  let widget: Promise<Widget> | undefined; // one load for all views of this model
  return {
    async render(context: Context): Promise<Cleanup> {
      widget ??= load(context.model);
      return (await widget).render(context);
    },
  };
};
