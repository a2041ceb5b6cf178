import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { asked, calmWords, queuedWords, readAt } = await import('../../ui/assets/runs/run_parts.js');

test('a remedy becomes the arguments of its action', () => {
  assert.deepEqual(asked({ action: 'duplicate', values: { 'train.learning_rate': 0.001, 'data.max_length': 64 } }),
    { set: ['train.learning_rate=0.001', 'data.max_length=64'] });
  assert.deepEqual(asked({ action: 'extend', values: { epochs: 2 } }), { epochs: 2 });
});

test('a running run is read ten times, an ended one once', () => {
  const at = (step, state = 'running') => readAt({ id: 1, state, step, total_steps: 100 });
  assert.equal(new Set([...Array(100).keys()].map((step) => at(step))).size, 10);
  assert.equal(at(10, 'succeeded'), at(20, 'succeeded'));
});

test('what is queued, and few held-out rows, are said', () => {
  assert.match(queuedWords({ steps: 133, seconds: 90 }), /133 steps is queued. It takes about 1:30.min/);
  assert.match(queuedWords({ steps: 133, seconds: null }), /133 steps is queued\.$/);
  assert.match(calmWords(3), /rests on 3 rows/);
  assert.doesNotMatch(calmWords(8) + calmWords(null), /rests/);
});

const { findingParts, modelWords, planWords } = await import('../../ui/assets/train/guide.js');

test('a model and a plan in words', () => {
  assert.equal(modelWords({ name: 'Starter', here: true }), 'Starter');
  assert.equal(modelWords({ name: 'o/m', parameters: 1.2e9, gated: true, suggested: true }),
    'o/m · 1.20\u202fB parameters · to download · gated · suggested');
  assert.equal(planWords({ unknown: 'Known once the model is downloaded.' }), 'Known once the model is downloaded.');
  const known = { seconds: 90, total_steps: 114, device: 'cpu', total_bytes: 2 ** 30 };
  assert.match(planWords(known), /1:30.min for 114 steps on cpu, with 1.00.GiB of memory\.$/);
  assert.match(planWords({ ...known, fits: false }), /of memory\. This does not fit: /);
});

test('a finding is a sentence and a command', () => {
  assert.deepEqual(findingParts('The GPU is not used. Run: pip install torch'),
    { sentence: 'The GPU is not used.', command: 'pip install torch' });
  assert.equal(findingParts('A note.').command, '');
});

const { Detail } = await import('../../ui/assets/runs/run.js');

test('a log is not drawn again while some of it is selected', () => {
  const detail = Object.assign(Object.create(Detail.prototype), { job: { id: 1 }, view: 'log', digest: 'old',
    body: document.createElement('div') });
  detail.body.contains = (node) => node === 'mine';
  const fill = (selected, anchorNode) => {
    globalThis.getSelection = () => ({ isCollapsed: !selected, anchorNode });
    detail.fill({ id: 1, view: 'log', digest: anchorNode, content: `log of ${anchorNode}` });
    return [detail.digest, detail.body.textContent];
  };
  assert.deepEqual(fill(true, 'mine'), ['old', '']);
  assert.deepEqual(fill(true, 'other'), ['other', 'log of other']);
  assert.deepEqual(fill(false, 'mine'), ['mine', 'log of mine']);
});
