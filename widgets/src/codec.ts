// The bytes of one chart update; the twin of src/llmserve/dashboard/codec.py, which describes them.

export interface Frame {
  seq: number;
  rows: number;
  times: Float64Array<ArrayBuffer>;
  columns: Float32Array<ArrayBuffer>[];
}

const MAGIC = 0x3144534c;
const HEADER = 16;

/** Reads a frame out of a view that may start anywhere in a larger buffer. */
export function decode(view: DataView): Frame {
  if (view.byteLength < HEADER || view.getUint32(0, true) !== MAGIC) {
    throw new Error("not a chart frame");
  }
  const seq = view.getUint32(4, true);
  const rows = view.getUint32(8, true);
  const count = view.getUint32(12, true);
  if (view.byteLength !== HEADER + 8 * rows + 4 * rows * count) {
    throw new Error("a chart frame of the wrong length");
  }
  const times = new Float64Array(rows);
  for (let i = 0; i < rows; i++) times[i] = view.getFloat64(HEADER + 8 * i, true);
  const columns: Float32Array<ArrayBuffer>[] = [];
  let at = HEADER + 8 * rows;
  for (let c = 0; c < count; c++) {
    const column = new Float32Array(rows);
    for (let i = 0; i < rows; i++, at += 4) column[i] = view.getFloat32(at, true);
    columns.push(column);
  }
  return { seq, rows, times, columns };
}
