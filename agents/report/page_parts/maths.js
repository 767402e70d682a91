// Pure functions of numbers. `A`, `V`, `r`, γ and λ as in `tokenenv.maths.generalized_advantages`.

/** GAE(γ, λ) of the tokens from..to of joined responses, written into `deltas` and `advantages`. */
function generalizedAdvantages(
  rewards,
  values,
  from,
  to,
  bootstrap,
  gamma,
  lambda,
  deltas,
  advantages,
) {
  let following = 0;
  for (let t = to - 1; t >= from; t--) {
    const next = t === to - 1 ? bootstrap : values[t + 1];
    deltas[t] = rewards[t] + gamma * next - values[t];
    following = deltas[t] + (t === to - 1 ? 0 : gamma * lambda * following);
    advantages[t] = following;
  }
}

/** λ = 1 − 1/(α·l), within [0, 1], of a response of l tokens: `length_adaptive_lambdas`. */
function lambdaByLength(length, alpha) {
  return Math.min(Math.max(1 - 1 / (alpha * length), 0), 1);
}

/** Pearson's r of the pairs of which both are known; NaN where either does not vary. */
function correlation(one, other) {
  let n = 0,
    meanOne = 0,
    meanOther = 0;
  for (let i = 0; i < one.length; i++) {
    if (Number.isNaN(one[i]) || Number.isNaN(other[i])) continue;
    n++;
    meanOne += one[i];
    meanOther += other[i];
  }
  if (n < 3) return NaN;
  meanOne /= n;
  meanOther /= n;
  let both = 0,
    squareOne = 0,
    squareOther = 0;
  for (let i = 0; i < one.length; i++) {
    if (Number.isNaN(one[i]) || Number.isNaN(other[i])) continue;
    const a = one[i] - meanOne,
      b = other[i] - meanOther;
    both += a * b;
    squareOne += a * a;
    squareOther += b * b;
  }
  const least = 1e-24 * n * (meanOne * meanOne + meanOther * meanOther + 1);
  if (squareOne <= least || squareOther <= least) return NaN;
  return both / Math.sqrt(squareOne * squareOther);
}

/** The known ones, in order. */
function sorted(values) {
  const known = new Float64Array(values.length);
  let n = 0;
  for (let i = 0; i < values.length; i++) if (values[i] === values[i]) known[n++] = values[i];
  return known.subarray(0, n).sort();
}

/** A quantile of sorted numbers, straight between neighbours. */
function quantile(ordered, part) {
  if (!ordered.length) return NaN;
  const place = part * (ordered.length - 1),
    low = Math.floor(place);
  const high = Math.min(low + 1, ordered.length - 1);
  return ordered[low] + (place - low) * (ordered[high] - ordered[low]);
}

/**
 * The Lorenz curve of what is at least 0: the part of the sum that the least of them have, at
 * 0, 1/points, … 1 of their number; and the Gini coefficient, 0 for all the same. Null where all
 * are 0.
 */
function lorenz(values, points = 100) {
  const ordered = sorted(values),
    n = ordered.length;
  const sums = new Float64Array(n + 1);
  for (let i = 0; i < n; i++) sums[i + 1] = sums[i] + ordered[i];
  const total = sums[n];
  if (!(total > 0)) return null;
  let area = 0;
  for (let i = 0; i < n; i++) area += (sums[i] + sums[i + 1]) / 2 / n;
  const part = (share) => {
    const place = share * n,
      low = Math.min(Math.floor(place), n - 1);
    return (sums[low] + (place - low) * (sums[low + 1] - sums[low])) / total;
  };
  const x = Array.from({ length: points + 1 }, (_, i) => i / points);
  return { x, y: x.map(part), gini: 1 - (2 * area) / total, part, n };
}

/** Round steps of an axis: about `count` of them from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= rough * 0.7);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12));
}
