// Fewer points where a screen could not show more: each bucket keeps its lowest and its highest.

export interface Points {
  x: number[];
  y: (number | null)[];
}

/** At most about `limit` points that keep every peak and every gap's place; NaN becomes null. */
export function thin(times: Float64Array, values: Float32Array, limit: number): Points {
  const points: Points = { x: [], y: [] };
  const count = times.length;
  const width = count <= limit ? 1 : Math.ceil((2 * count) / limit);
  for (let start = 0; start < count; start += width) {
    bucket(times, values, start, Math.min(start + width, count), points);
  }
  return points;
}

function bucket(
  times: Float64Array,
  values: Float32Array,
  start: number,
  end: number,
  points: Points,
): void {
  let low = -1;
  let high = -1;
  for (let i = start; i < end; i++) {
    const value = values[i]!;
    if (Number.isNaN(value)) continue;
    if (low < 0 || value < values[low]!) low = i;
    if (high < 0 || value > values[high]!) high = i;
  }
  if (low < 0) {
    points.x.push(times[start]!);
    points.y.push(null);
    return;
  }
  const order = low === high ? [low] : [Math.min(low, high), Math.max(low, high)];
  for (const i of order) {
    points.x.push(times[i]!);
    points.y.push(values[i]!);
  }
}
