import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { clientName, compareAddress, isCheckpoint, laneName, parseLane, trainWith, writeLane } =
  await import('../../ui/assets/core/lanes.js');

const LANES = [
  ['starter', { model: 'starter', stack: [] }],
  ['starter~pirate:1+terse:-0.5', { model: 'starter',
    stack: [{ name: 'pirate', weight: 1 }, { name: 'terse', weight: -0.5 }] }],
  ['starter~7@100:1', { model: 'starter', stack: [{ name: '7@100', weight: 1 }] }],
  ['/m/a~b~x%20y%7Ez%3A1:2', { model: '/m/a~b', stack: [{ name: 'x y~z:1', weight: 2 }] }],
];

test('a lane is read as it was written', () => {
  for (const [words, lane] of LANES) {
    assert.deepEqual(parseLane(words), lane);
    assert.deepEqual(parseLane(writeLane(lane)), lane);
    assert.equal(writeLane(lane), words);
  }
});

test('an address may have turned the plus into a space', () => {
  assert.equal(parseLane('starter~a:1 b:0.5').stack.length, 2);
});

test('a lane has a name for the page and one for OpenAI clients', () => {
  const lane = { model: '/m/starter', stack: [{ name: 'pirate', weight: 0.5 }, { name: 'terse', weight: 1 }] };
  assert.equal(laneName(lane), 'starter + pirate × 0.5 + terse');
  assert.equal(clientName(lane), '/m/starter+pirate:0.5+terse');
  assert.equal(clientName({ model: 'm', stack: [{ name: 'a+b', weight: 1 }] }), 'm+a%2Bb');
});

test('a lane keeps its note, which is not part of its stack', () => {
  const lane = parseLane('starter~pirate:1 · system Be: 1 · 2');
  assert.deepEqual(lane, { model: 'starter', stack: [{ name: 'pirate', weight: 1 }], note: 'system Be: 1 · 2' });
  assert.equal(laneName(lane), 'starter + pirate · system Be: 1 · 2');
});

test('jobs and checkpoints link to their lanes', () => {
  assert.equal(compareAddress({ kind: 'train', model: 'a b', name: 'run' }),
    '/compare?lane=a%20b&lane=a%20b~run%3A1');
  assert.equal(compareAddress({ kind: 'merge', model: 'm', adapter: '/o/x' }), '/compare?lane=m&lane=%2Fo%2Fx');
  assert.equal(compareAddress({ kind: 'train', model: 'm', adapter: '/r/4/adapter', name: 'all', trains_base: true }),
    '/compare?lane=m&lane=%2Fr%2F4%2Fadapter');
  const [, lane] = new URLSearchParams(compareAddress({ kind: 'mix', model: 'm',
    name: '50% ~x' }).slice(9)).getAll('lane');
  assert.deepEqual(parseLane(lane), { model: 'm', stack: [{ name: '50% ~x', weight: 1 }] });
  assert.deepEqual(['7@100', 'run-7', '7@'].map(isCheckpoint), [true, false, false]);
});

test('a link to Train replaces fields of the form as it was left, and keeps all others', () => {
  let left = '?set=model.path%3Dme%2Fit&set=train.loss%3Ddpo&set=train.max_steps%3D7&run=3';
  globalThis.sessionStorage = { getItem: (key) => (key === 'studio.left/' ? left : null) };
  const shown = (...asked) => {
    const { pathname, searchParams } = new URL(trainWith(...asked), 'http://here');
    assert.equal(pathname, '/');
    return [searchParams.getAll('set'), searchParams.get('run')];
  };
  const steps = 'train.max_steps=7';
  assert.deepEqual(shown(['data.path=a b+c']), [['model.path=me/it', 'train.loss=dpo', steps, 'data.path=a b+c'], '3']);
  assert.deepEqual(shown(['model.path=x', 'train.loss=kto']), [[steps, 'model.path=x', 'train.loss=kto'], '3']);
  assert.deepEqual(shown(['data.path=y'], /^train\.loss=/), [['model.path=me/it', steps, 'data.path=y'], '3']);
  left = '';
  assert.deepEqual(shown(['data.path=y']), [['data.path=y'], null]);
});
