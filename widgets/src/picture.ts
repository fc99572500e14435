// All panels in one PNG, for notebooks that are read without a kernel.

import Plotly, { type Data, type Layout } from "plotly.js-basic-dist-min";

export interface Figure {
  data: Data[];
  layout: Layout;
}

const PER_ROW = 3;
const SCALE = 2;

export async function picture(figures: Figure[], width: number, height: number): Promise<ArrayBuffer> {
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(PER_ROW, figures.length) * width * SCALE;
  canvas.height = Math.ceil(figures.length / PER_ROW) * height * SCALE;
  const context = canvas.getContext("2d")!;
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const [i, figure] of figures.entries()) {
    const url = await Plotly.toImage(figure, { format: "png", width, height, scale: SCALE });
    const image = new Image();
    image.src = url;
    await image.decode();
    context.drawImage(image, (i % PER_ROW) * width * SCALE, Math.floor(i / PER_ROW) * height * SCALE);
  }
  const blob = await new Promise<Blob | null>((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("the browser made no picture");
  return blob.arrayBuffer();
}
