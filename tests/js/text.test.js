import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { diff, markdown } = await import('../../ui/assets/compare/text.js');
const outline = (source) => markdown(source).map((node) => node.outline ?? '').join('');

test('a diff keeps the longest common run of words', () => {
  assert.deepEqual(diff('the cat sat', 'the dog sat'), [['=', 'the '], ['-', 'cat '], ['+', 'dog '], ['=', 'sat']]);
  assert.deepEqual(diff('', 'new'), [['+', 'new']]);
  assert.deepEqual(diff('same words', 'same words'), [['=', 'same words']]);
});

test('a diff of a language without blanks between words marks the signs that differ', () => {
  assert.deepEqual(diff('今天天气很好。', '今天天气不好。'),
    [['=', '今天天气'], ['-', '很'], ['+', '不'], ['=', '好。']]);
  assert.deepEqual(diff('用 LoRA 训练', '用 DoRA 训练'), [['=', '用 '], ['-', 'LoRA '], ['+', 'DoRA '], ['=', '训练']]);
});

test('markdown becomes elements', () => {
  assert.equal(outline('# Head\n**bold** and *slanted*'),
    '<p>Head</p><p><strong>bold</strong> and <em>slanted</em></p>');
  assert.equal(outline('- a\n- b'), '<ul><li>a</li><li>b</li></ul>');
  assert.match(outline('```js\nlet x;\n'), /<pre>let x;\n?<\/pre>/);
});

test('HTML and links in an answer stay text', () => {
  const source = '<img src=x onerror=alert(1)> [a](javascript:alert(1)) <script>1</script>';
  const tags = markdown(source).filter((node) => node.tag).map((node) => node.tag);
  assert.deepEqual(tags, ['p']);
  assert.equal(markdown(source)[0].textContent, source);
});
