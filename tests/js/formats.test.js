import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { bytes, compact, count, duration, number, short } = await import('../../ui/assets/core/dom.js');
const plain = (words) => words.replaceAll('\u202f', ' ');

test('numbers have four significant digits and never an exponent where digits fit', () => {
  assert.deepEqual([1.23456, 0.012345, 0, null, NaN].map((v) => number(v)), ['1.235', '0.01235', '0', '–', '–']);
  assert.equal(number(100, 2), '100');
  assert.equal(number(0.00001234), '1.23e−5');
  assert.equal(plain(number(123456)), '123 k');
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
