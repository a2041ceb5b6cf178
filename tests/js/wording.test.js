import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { figures } = await import('../../ui/assets/compare/answer.js');
const { Mapping } = await import('../../ui/assets/data/import.js');

test('an answer says what its stack changed, of which unit, and nothing of the base alone', () => {
  const end = { reason: 'stop', tokens_count: 24,
    active: { stack: [{ name: 'pirate', weight: 0.5 }], max_logit_difference: 20.04, verified: true } };
  assert.match(figures(end), /pirate × 0\.5/);
  assert.match(figures(end), /changed logits by up to 20$/);
  assert.doesNotMatch(figures({ ...end, active: { ...end.active, verified: false } }), /logits/);
  assert.doesNotMatch(figures({ ...end, active: { stack: [], max_logit_difference: 0 } }), /logits/);
});

test('a part of a row that must be there says so in a word', () => {
  const formats = { instruction: { needed: ['prompt'], optional: ['system'] } };
  const page = new Mapping({ formats }, 'rows.csv');
  page.mapping = { format: 'instruction', columns: {}, templates: {}, constants: {}, roles: {} };
  page.columns = { question: {} };
  const words = page.columnTable().textContent;
  assert.match(words, /prompt \(needed\)/);
  assert.doesNotMatch(words, /\*/);
});
