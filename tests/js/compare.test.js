import './dom_stub.js';
import assert from 'node:assert/strict';
import { test } from 'node:test';

const { Conversation, correct } = await import('../../ui/assets/compare/conversation.js');
const { runOf, Tabs } = await import('../../ui/assets/compare/tabs.js');
const { tabs } = await import('../../ui/assets/core/dom.js');
const { heatTable } = await import('../../ui/assets/core/outcome.js');
const { Votes } = await import('../../ui/assets/compare/votes.js');

const settings = { system: '', sampling: { seed: 0 } };

/** A conversation whose host knows nothing of what it is asked, or `knows`; answers come only through `write`. */
async function asking(knows) {
  const asked = {};
  globalThis.fetch = async (path, { body, signal }) => {
    if (path === '/api/chat/stop') return { ok: true, json: async () => ({ stopped: knows }) };
    if (path !== '/api/chat/generate') return { ok: true, json: async () => ({}) };
    assert.deepEqual(JSON.parse(body).lanes.length, 1);
    const stream = new TransformStream();
    asked.write = stream.writable.getWriter();
    signal.addEventListener('abort', () => { asked.aborted = true; asked.write.abort(signal.reason); });
    asked.begun?.();
    return { ok: true, body: stream.readable };
  };
  const one = new Conversation(null, settings, () => {});
  await one.open([{ model: 'starter', stack: [] }]);
  const begun = new Promise((done) => { asked.begun = done; });
  const answered = one.ask('Who?');
  await begun;
  return { one, asked, answered };
}

test('an arrow key leaves the focus on the tab, also where what opens takes it', () => {
  const steps = [], next = { focus: () => steps.push('focus'), click: () => steps.push('click') };
  tabs([['a', 'A']], () => {}).listeners.keydown({ key: 'ArrowLeft', target: { previousSibling: next } });
  assert.deepEqual(steps, ['click', 'focus']);
});

test('lanes that never met have a dash in the table of wins', () => {
  assert.match(heatTable('', ['a'], ['b'], () => null).textContent, /b–$/);
});

const line = (event) => new TextEncoder().encode(`${JSON.stringify(event)}\n`);

test('an answer is stopped while the host that would write it still starts', async () => {
  const { one, asked, answered } = await asking(false);
  await one.stop();
  await answered;
  assert.equal(asked.aborted, true);
  assert.equal(one.turns[0].answers[0].reason, 'stopped');
  assert.equal(one.asking, null);
});

test('a host that knows the request ends it itself, with its figures', async () => {
  const { one, asked, answered } = await asking(true);
  await one.stop();
  asked.write.write(line({ type: 'done', lane: 0, reason: 'stopped', tokens: 3 }));
  asked.write.close();
  await answered;
  assert.equal(asked.aborted, undefined);
  const { reason, tokens_count: tokens } = one.turns[0].answers[0];
  assert.deepEqual([reason, tokens], ['stopped', 3]);
});

test('a copy takes the turns that are saved, and then saves those that are not', async () => {
  const sent = [], turn = (prompt) => ({ prompt, answers: [{ text: prompt }] });
  let elsewhere = true;
  globalThis.fetch = async (path, { body }) => {
    const asked = JSON.parse(body), refused = elsewhere && path === '/api/chat/turns' && asked.number === 1;
    sent.push([path.split('/').pop(), asked.number ?? asked.turns]);
    return { ok: !refused, status: refused ? 400 : 200, json: async () => (refused
      ? { error: { text: 'in another tab' } } : { parent: 'a' }) };
  };
  const one = new Conversation(null, settings, () => {});
  one.begin({ id: 'a', turns: ['one', 'two', 'three'].map(turn), saved: true });
  one.warned = true; // it was said
  await one.save(1);
  await one.save(2);
  await one.save();
  elsewhere = false;
  await one.branch(3);
  assert.deepEqual(sent.slice(-4), [['branch', 1], ['conversations', 3], ['turns', 1], ['turns', 2]]);
  assert.deepEqual([one.parent, one.missing.size, one.turns.length], ['a', 0, 3]);
});

test('a failure of the whole request leaves the answers that had ended', async () => {
  const { one, asked, answered } = await asking(true);
  asked.write.write(line({ type: 'done', lane: 0, reason: 'stop', tokens: 3 }));
  asked.write.write(line({ type: 'error', lane: null, text: 'The host ended.' }));
  asked.write.close();
  await answered;
  const [answer] = one.turns[0].answers;
  assert.deepEqual([answer.reason, answer.error, answer.system], ['stop', undefined, '']);
});

test('an answer that was cut in a character goes on from the last whole one', async () => {
  const { one, asked, answered } = await asking(true);
  asked.write.write(line({ type: 'delta', lane: 0, text: 'Hi \uFFFD', part: 'thought' }));
  asked.write.close();
  await answered;
  const [turn] = one.turns, begun = new Promise((done) => { asked.begun = done; });
  const more = one.run(turn, [0], { goOn: true });
  await begun;
  asked.write.close();
  await more;
  assert.deepEqual([turn.answers[0].text, turn.answers[0].parts], ['Hi ', [['thought', 'Hi ']]]);
});

test('a corrected answer keeps its thought, and no marker becomes text', () => {
  const answer = { text: '<think>hm</think>\n\nHi', parts: [['mark', '<think>'], ['thought', 'hm'],
    ['mark', '</think>'], ['text', '\n\nHi']] };
  correct(answer, 'Ahoy');
  assert.deepEqual([answer.original, answer.text], ['Hi', '<think>hm</think>Ahoy']);
  assert.deepEqual(answer.parts.at(-1), ['text', 'Ahoy']);
});

const { Answer, figures } = await import('../../ui/assets/compare/answer.js');

test('notes and loading messages are hidden while a test is blind', () => {
  const cell = new Answer(0, {}), view = { hidden: true, place: 0 };
  cell.show({ text: '', status: 'Loading pirate …', note: 'pirate does nothing' }, view);
  assert.doesNotMatch(cell.words.textContent + cell.note.textContent, /pirate/);
  cell.show({ text: '', status: 'Loading pirate …', note: 'pirate does nothing' },
    { ...view, hidden: false, letter: 'A' });
  assert.match(cell.words.textContent + cell.note.textContent, /Loading pirate.*pirate does/);
});

/** A bar of votes on a turn, and how often each of its keys was pressed. */
function voting(verdicts) {
  const turn = { answers: verdicts.map((verdict) => ({ verdict, reason: 'stop', text: 'a' })) };
  const votes = new Votes({ conversation: { turns: [turn] } });
  votes.bar(turn);
  votes.refresh(turn);
  return { turn, votes, bar: votes.bars.get(turn) };
}

test('a number that begins a prompt is no vote, elsewhere it is', () => {
  const { votes, bar } = voting([undefined, undefined]);
  let pressed = 0;
  Object.assign(bar.element, { isConnected: true });
  bar.choices.querySelector = () => ({ click() { pressed += 1; } });
  const press = (field) => votes.key({ key: '2', target: { closest: () => field }, preventDefault() {} });
  press({ value: '' });
  press({ value: '1' });
  assert.equal(pressed, 0);
  press(null);
  assert.equal(pressed, 1);
});

test('a vote is said as it was cast, also when the lane of its choice is gone', () => {
  const said = (...verdicts) => voting(verdicts).bar.words.textContent;
  assert.equal(said('lost', 'won'), 'You chose B.');
  assert.equal(said('tie', 'tie'), 'You called it a tie.');
  assert.equal(said('bad', 'bad'), 'You rejected all of them.');
  assert.equal(said('lost', 'lost'), 'The lane that you chose was removed.');
});

test('questions come from the run that made the last lane', () => {
  const lanes = (model, name) => [{ model: 'starter', stack: [] }, { model, stack: name ? [{ name, weight: 1 }] : [] }];
  const run = (model, name) => runOf(lanes(model, name), [{ name: 'polite', run: '7' }, { name: 'mixed', run: '' }]);
  assert.deepEqual([run('starter', 'polite'), run('starter', '12@300')], ['7', '12']);
  assert.deepEqual([run('/home/me/runs/9/adapter'), run('C:\\me\\runs\\9\\adapter')], ['9', '9']);
  assert.deepEqual([run('starter', 'mixed'), run('starter')], [undefined, undefined]);
});

const { line: typed } = await import('../../ui/assets/compare/suites.js');

test('a case is written so that it is read again as the same case', () => {
  assert.equal(typed({ prompt: 'Hi?', expected: 'Yes.' }), 'Hi? => Yes.');
  assert.equal(typed({ prompt: 'Hi?', pattern: '^Y' }), 'Hi? =~ ^Y');
  assert.equal(typed({ prompt: 'Hi?' }), 'Hi?');
  const others = [{ prompt: 'a\nb', expected: 'c' }, { prompt: 'f => g' }, { prompt: '{x}' }, { prompt: 'a =~ b',
    expected: 'c' }, { prompt: 'a', before: [{ role: 'system', content: 's' }] }];
  for (const one of others) assert.deepEqual(JSON.parse(typed(one)), one);
});

const { Composer } = await import('../../ui/assets/compare/composer.js');

test('a setting of an answer that is out of bounds or no whole number is shown as it is used', () => {
  globalThis.localStorage = { setItem() {} };
  const used = {}, composer = new Composer({ seed: { type: 'integer', minimum: 0, default: 0 },
    temperature: { type: 'number', minimum: 0, maximum: 10, step: 0.05, default: 0 } },
  { settings: () => used, letters: () => [], changed() {} });
  const typed = { seed: '1.6', temperature: '20' };
  for (const one of composer.fields) {
    const { min, max } = one.input.attributes;
    one.input = { type: 'number', min, max, value: typed[one.name],
      get valueAsNumber() { return Number(this.value); } };
  }
  composer.system.value = '';
  composer.take();
  assert.deepEqual(used.sampling, { seed: 2, temperature: 10 });
  assert.deepEqual(composer.fields.map(({ input }) => input.value), [10, 2]);
});

test('Back changes the tab, and the address has the lanes and the chat that are shown', (context) => {
  const heard = [], done = [];
  context.mock.method(globalThis, 'addEventListener', (type, act) => heard.push([type, act]));
  const tabs = new Tabs({ address: () => done.push('address') });
  tabs.open = (view) => done.push(view);
  location.href = 'http://a/compare?view=suites';
  heard.find(([type]) => type === 'popstate')[1]();
  assert.deepEqual(done, ['suites', 'address']);
});

test('an answer says what its stack changed, of which unit, and nothing of the base alone', () => {
  const end = { reason: 'stop', tokens_count: 24,
    active: { stack: [{ name: 'pirate', weight: 0.5 }], max_logit_difference: 20.04, verified: true } };
  assert.match(figures(end), /pirate × 0\.5/);
  assert.match(figures(end), /changed logits by up to 20$/);
  assert.doesNotMatch(figures({ ...end, active: { ...end.active, verified: false } }), /logits/);
  assert.doesNotMatch(figures({ ...end, active: { stack: [], max_logit_difference: 0 } }), /logits/);
});

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
