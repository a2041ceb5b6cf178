import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { fileName } = await import('../../ui/assets/core/take_away.js');
const { RankedTable } = await import('../../ui/assets/core/ranked.js');
const { csv, drawnTable, framed, markdown, SvgPen } = await import('../../ui/assets/core/svg_pen.js');

test('a file is named by its title in any script', () => {
  assert.deepEqual(['Training loss', '训练损失', 'KL to the base, per token'].map(fileName),
    ['training-loss', '训练损失', 'kl-to-the-base-per-token']);
});

test('a pen writes the paths and texts that a canvas would show', () => {
  const pen = new SvgPen();
  pen.strokeStyle = '#3350cf';
  pen.beginPath();
  pen.moveTo(1, 2);
  pen.lineTo(3.456, 4);
  pen.stroke();
  pen.textAlign = 'right';
  pen.fillText('a < b', 5, 6);
  assert.match(pen.markup, /<path d="M1 2L3.46 4" fill="none" stroke="#3350cf"/);
  assert.match(pen.markup, /<text x="5" y="6" fill="#000" text-anchor="end">a &#60; b<\/text>/);
});

test('what is clipped is closed again', () => {
  const pen = new SvgPen();
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, 10, 10);
  pen.clip();
  pen.restore();
  assert.equal(pen.markup.split('<g').length, pen.markup.split('</g>').length);
});

test('a file names its size, and a legend that is wide takes a second line', () => {
  const colours = { ground: '#fff', text: '#111', muted: '#555' };
  const legend = Array.from({ length: 6 }, (_, i) => ({ colour: '#3350cf', name: `a long name of run ${i}` }));
  const one = framed('', { width: 400, height: 100, title: 'Loss & more', colours });
  const six = framed('', { width: 400, height: 100, title: 'Loss', legend, colours });
  assert.match(one, /<title>Loss &#38; more<\/title>/);
  assert.match(one, /xmlns="http:\/\/www.w3.org\/2000\/svg" width="400" height="136"/);
  assert.ok(six.includes('y="56"'), 'second line of the legend');
});

test('no text of a CSV is a formula, and commas and quotes stay inside a cell', () => {
  assert.equal(csv([['Step', '=1+1', 'a, "b"'], [-2, null, NaN], ['-0.5', '-a']]),
    'Step,\'=1+1,"a, ""b"""\r\n-2,,\r\n-0.5,\'-a\r\n');
});

test('the values of a ranked table are numbers, each spread in a column of its own', () => {
  const figure = (key) => ({ title: key, value: (row) => row[key], spread: (row) => row[`${key}_interval`],
    show: (row) => `${row[key]} B` });
  const table = new RankedTable([{ title: 'Method', value: (row) => row.name }, figure('loss'), figure('size')],
    { order: 'loss', rest: (row) => row.error && document.createElement('i') });
  table.draw([{ name: 'b', loss: 2, size: 2 ** 20 }, { name: 'c', error: 'failed' }, { name: 'a', loss: 1,
    loss_interval: 0.25, size: 7 }]);
  assert.deepEqual(table.values(), [['Method', 'loss', 'loss ±', 'size'], ['a', 1, 0.25, 7],
    ['b', 2, undefined, 2 ** 20], ['c', '']]);
});

test('the files of Results have every column, the base and empty ones too', async () => {
  const defined = new Map();
  customElements.define = (name, page) => defined.set(name, page);
  await import('../../ui/assets/results/results.js');
  const page = Object.create(defined.get('studio-results').prototype);
  Object.assign(page, { table: { order: 'Bytes', falls: true }, pins: new Set(), found: { columns: [
    { key: 'size_bytes', title: 'Bytes' }, { key: 'win_rate', title: 'Win rate' }] } });
  const row = { key: 'a', name: 'a', id: '', method: 'LoRA', base: 'one', data: '', best: [], size_bytes: 7 };
  assert.deepEqual(page.whole([row, { ...row, key: 'b', base: 'two', size_bytes: 9 }]).values(), [
    ['Adapter', 'Method', 'Trained on', 'Base', 'Bytes', 'Win rate'], ['a', 'LoRA', null, 'two', 9, undefined],
    ['a', 'LoRA', null, 'one', 7, undefined]]);
});

test('a Markdown table aligns numbers and keeps bars inside their cell', () => {
  assert.equal(markdown([['Run', 'Loss'], ['a|b', '0.25'], ['c', '–']]),
    '| Run | Loss |\n| --- | ---: |\n| a\\|b | 0.25 |\n| c | – |\n');
});

test('a drawn table has its numbers at the right, its best in bold and long names cut', () => {
  const rows = [['Run', 'Loss'], ['a<b', '0.25'], ['x'.repeat(60), '–']];
  const { markup, width, height } = drawnTable(rows, { text: '#111', muted: '#555' }, (row, column) => row === 1
    && column === 1);
  assert.equal(height, 66);
  assert.ok(width > 300 && width < 400);
  assert.match(markup, /text-anchor="end" font-weight="600">0.25</);
  assert.match(markup, /text-anchor="start">a&#60;b</);
  assert.match(markup, />x{45}…</);
});
