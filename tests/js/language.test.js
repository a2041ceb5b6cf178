import './dom_stub.js';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

const catalog = readFileSync(new URL('../../ui/locale/zh_CN/LC_MESSAGES/pages.po', import.meta.url), 'utf8');
globalThis.studioWords = Object.fromEntries([...catalog.matchAll(/^msgid (".+")\nmsgstr (".+")$/gm)]
  .map(([, key, words]) => [JSON.parse(key), JSON.parse(words)]));
document.body.lang = 'zh-CN';
const { ago, clock, duration, when } = await import('../../ui/assets/core/dom.js');
const { drawn } = await import('../../ui/assets/data/xray.js');

test('dates and times are in the language of the page, not in that of the browser', () => {
  const time = new Date(2021, 4, 15, 12, 30).getTime() / 1000;
  assert.match(ago(time), /^2021年5月15日$/);
  assert.match(clock(time, true), /^2021年5月15日 12:30:00$/);
  assert.match(when(time), /^2021年5月15日 12:30$/);
  assert.equal(duration(200000), '2\u202f天');
});

test('the sides of a pair are named in the language of the page', () => {
  const view = { part: 1, num_parts: 1, num_tokens: 0, num_trained: 0, num_truncated: 0, tokens: [], lost: [] };
  const [one, other] = drawn([{ ...view, side: 'chosen' }, { ...view, side: 'rejected' }]);
  assert.match(one.textContent, /^选中 · 0 个词元/);
  assert.match(other.textContent, /^拒绝 · /);
});
