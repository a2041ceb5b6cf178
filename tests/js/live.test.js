import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { append, hues, progress, stateName } = await import('../../ui/assets/core/live.js');

test('new points replace the steps that a resumed run repeats', () => {
  const runs = new Map();
  append(runs, 3, { x: [1, 2, 3, 4], y: [9, 8, 7, 6] });
  append(runs, 3, { x: [3, 4, 5], y: [70, 60, 50] });
  assert.deepEqual(runs.get(3), { x: [1, 2, 3, 4, 5], y: [9, 8, 70, 60, 50] });
});

test('two runs never share a colour while one is free', () => {
  assert.deepEqual([...hues([1, 11, 2])], [[1, 0], [2, 1], [11, 2]]);
});

test('progress and state in words', () => {
  assert.equal(progress({ step: 120, total_steps: 400 }), '120 / 400 steps · 30\u202f%');
  assert.equal(progress({ step: 5 }), '5 steps');
  assert.equal(progress({ step: 0 }), '');
  assert.equal(stateName({ state: 'succeeded', ended: 'stopped' }), 'stopped');
});
