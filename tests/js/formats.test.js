import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { bytes, clock, compact, count, duration, number, percent, short, sureButton } = await import(
  '../../ui/assets/core/dom.js');
const plain = (words) => words.replaceAll('\u202f', ' ');

test('numbers have four significant digits and never an exponent where digits fit', () => {
  assert.deepEqual([1.23456, 0.012345, 0, null, NaN].map((v) => number(v)), ['1.235', '0.01235', '0', '–', '–']);
  assert.equal(number(100, 2), '100');
  assert.equal(number(0.00001234), '1.23e−5');
  assert.equal(plain(number(123456)), '123 k');
});

test('rounding up to the next power of ten adds a digit or the next unit, never an exponent', () => {
  assert.deepEqual([[99.6, 2], [999.7, 3], [0.9999, 3], [123.4, 2], [9999.6]].map((one) => plain(number(...one))),
    ['100', '1000', '1.00', '123', '10.0 k']);
  assert.equal(plain(percent(0.9996, 2)), '100 %');
  assert.deepEqual([999.6, 999600, 999.6e6, 999.6e9, -999600].map((v) => plain(compact(v))),
    ['1.00 k', '1.00 M', '1.00 B', '1.00 T', '-1.00 M']);
  assert.equal(plain(bytes(999.7 * 2 ** 40)), '0.976 PiB');
  for (let value = 0.0011; value < 1e14; value *= 1.0007) {
    for (const words of [number(value, 2), number(value), compact(value), bytes(value)]) {
      assert.doesNotMatch(words, /e/, String(value));
    }
  }
});

test('a date has its year unless that is the current one', () => {
  const { year, ...rest } = { year: new Date().getFullYear(), month: 5, day: 15 };
  const at = (of) => clock(new Date(of, rest.month, rest.day, 12).getTime() / 1000, true);
  assert.ok(at(2021).includes('2021'), at(2021));
  assert.ok(!at(year).includes(year), at(year));
});

test('a double click asks and does not confirm, a second click does', async () => {
  let done = 0;
  const node = sureButton('Delete', 'Really?', () => { done += 1; });
  const click = (detail) => node.listeners.click({ detail });
  for (const detail of [1, 2, 3]) await click(detail);
  assert.deepEqual([node.textContent, done], ['Really?', 0]);
  await click(1);
  assert.deepEqual([node.textContent, done], ['Delete', 1]);
});

test('counts, sizes and short numbers carry units', () => {
  assert.equal(plain(count(1234567)), '1 234 567');
  assert.equal(plain(compact(2.5e6)), '2.50 M');
  assert.equal(compact(12), '12');
  assert.deepEqual([0, 999, 1000, 1536, 3 * 2 ** 30].map((v) => plain(bytes(v))),
    ['0 B', '999 B', '0.977 KiB', '1.50 KiB', '3.00 GiB']);
});

test('durations change their unit', () => {
  assert.deepEqual([8, 80, 7500, 200000, null].map((s) => plain(duration(s))),
    ['8 s', '1:20 min', '2:05 h', '2 days', '–']);
});

test('a path is called by its last part', () => {
  assert.deepEqual(['/models/a/', 'org/name', 'starter', '/'].map(short), ['a', 'name', 'starter', '/']);
});

const { sumWords } = await import('../../ui/assets/data/report.js');

test('all rows of a dataset are one sentence', () => {
  const rows = { read: 57, kept: 56, dropped: 1 };
  assert.equal(sumWords({ rows, duplicates: 2, train_examples: 53, validation_examples: 3 }),
    '57 rows: 1 dropped, 56 usable. Of these 53 are trained and 3 held out. 2 repeat an earlier row.');
  assert.equal(sumWords({ rows, duplicates: 0, train_examples: 110, validation_examples: 4 }),
    '57 rows: 1 dropped, 56 usable. They become 110 trained and 4 held-out examples.');
});
