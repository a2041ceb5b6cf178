// What differs between two answers, word by word: the longest common run of words stays, the rest
// is taken out or put in.

const MOST_CELLS = 4_000_000;

/** Return [kind, words] pieces that turn `before` into `after`; kind is '=', '-' or '+'. */
export function diff(before, after) {
  const a = split(before), b = split(after);
  const same = (i, j) => a[i].trimEnd() === b[j].trimEnd();
  let head = 0, tail = 0;
  while (head < a.length && head < b.length && same(head, head)) head += 1;
  while (tail < a.length - head && tail < b.length - head
    && same(a.length - 1 - tail, b.length - 1 - tail)) tail += 1;
  const pieces = [];
  const put = (kind, word) => {
    const last = pieces.at(-1);
    if (last?.[0] === kind) last[1] += word; else pieces.push([kind, word]);
  };
  b.slice(0, head).forEach((word) => put('=', word));
  const rows = a.length - head - tail, columns = b.length - head - tail;
  const table = rows * columns <= MOST_CELLS ? lengths(rows, columns, (i, j) => same(head + i, head + j))
    : null;
  let i = 0, j = 0;
  while (i < rows || j < columns) {
    if (table && i < rows && j < columns && same(head + i, head + j)) {
      put('=', b[head + j]); i += 1; j += 1;
    } else if (i < rows && (j === columns || !table || table[i + 1][j] >= table[i][j + 1])) {
      put('-', a[head + i]); i += 1;
    } else {
      put('+', b[head + j]); j += 1;
    }
  }
  b.slice(b.length - tail).forEach((word) => put('=', word));
  return pieces;
}

function split(words) {
  return words.match(/\s*\S+\s*/g) ?? [];
}

function lengths(rows, columns, same) {
  const table = Array.from({ length: rows + 1 }, () => new Uint16Array(columns + 1));
  for (let i = rows - 1; i >= 0; i -= 1) {
    for (let j = columns - 1; j >= 0; j -= 1) {
      table[i][j] = same(i, j) ? table[i + 1][j + 1] + 1 : Math.max(table[i + 1][j], table[i][j + 1]);
    }
  }
  return table;
}
