import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { sumWords } = await import('../../ui/assets/data/report.js');

test('all rows of a dataset are one sentence', () => {
  const rows = { read: 57, kept: 56, dropped: 1 };
  assert.equal(sumWords({ rows, duplicates: 2, train_examples: 53, validation_examples: 3 }),
    '57 rows: 1 dropped, 56 usable. Of these 53 are trained and 3 held out. 2 repeat an earlier row.');
  assert.equal(sumWords({ rows, duplicates: 0, train_examples: 110, validation_examples: 4 }),
    '57 rows: 1 dropped, 56 usable. They become 110 trained and 4 held-out examples.');
});
