// Pure arithmetic of a chart: ticks, scales, smoothing, the nearest point. No canvas, no document.

/** About `wanted` round values covering [low, high]; at least two where the smallest step has them. */
export function ticks(low, high, wanted, whole = false) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const rough = span / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const steps = [1, 2, 5, 10].map((m) => (whole ? Math.max(1, Math.round(m * power)) : m * power));
  let found = [];
  for (let at = steps.findIndex((step) => step >= rough * 0.7); at >= 0 && found.length < 2; at--) {
    found = multiples(steps[at], low, high);
  }
  return found;
}

function multiples(step, low, high) {
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) {
    found.push(+(k * step).toPrecision(12));
  }
  return found;
}

/** Powers of ten in [low, high], with 2 and 5 between them where there are few. */
export function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  const between = to - from <= 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let e = from; e <= to; e++) {
    for (const m of between) {
      const value = m * 10 ** e;
      if (value >= low && value <= high) found.push(+value.toPrecision(6));
    }
  }
  return found;
}

/** Exponential moving average that starts unbiased and follows uneven steps; its unit is the usual
 *  distance of two points, so that a thinned curve is smoothed like a whole one. */
export function smooth(x, y, amount) {
  if (!amount) return y;
  const out = new Array(y.length);
  const usual = Math.max(1, (x.at(-1) - x[0]) / Math.max(1, x.length - 1));
  let mean = 0, weight = 0;
  for (let i = 0; i < y.length; i++) {
    const gap = i ? Math.max(0.25, (x[i] - x[i - 1]) / usual) : 1;
    const keep = amount ** Math.min(gap, 50);
    if (Number.isFinite(y[i])) {
      mean = mean * keep + y[i] * (1 - keep);
      weight = weight * keep + (1 - keep);
    }
    out[i] = weight ? mean / weight : y[i];
  }
  return out;
}

/** Index of the point nearest to `value` in sorted `x`. */
export function nearest(x, value) {
  let low = 0, high = x.length - 1;
  if (high < 0) return -1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(x[low] - value) <= Math.abs(x[high] - value) ? low : high;
}

/** [low, high] of the values that are visible, with a little air; null when there are none. */
export function extent(lines, from, to, log) {
  let low = Infinity, high = -Infinity;
  for (const { x, y: smoothed, raw } of lines) {
    const y = raw ?? smoothed; // a spike must stay in sight, however smooth the line
    for (let i = 0; i < x.length; i++) {
      if (x[i] < from || x[i] > to || !Number.isFinite(y[i]) || (log && y[i] <= 0)) continue;
      if (y[i] < low) low = y[i];
      if (y[i] > high) high = y[i];
    }
  }
  if (low > high) return null;
  if (log) {
    const air = Math.max(1.02, (high / low) ** 0.06);
    return [low / air, high * air];
  }
  const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - air) : low - air, high + air];
}
