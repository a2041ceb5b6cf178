// What a finished job about adapters made: the certificate of a merge, the error of a mix, or the
// sentence that says why there is nothing.

import { api, button, copy, h, number, short } from './dom.js';
import { askPush } from './adapters_export.js';

export const KINDS = { merge: 'Merge', mix: 'Mix', import_adapter: 'Import', export_adapter: 'Export',
  gguf: 'GGUF', push: 'Push', picture: 'Picture', bakeoff: 'Bake-off', promote: 'Promote' };
const WRITES = ['merge', 'mix', 'gguf', 'export_adapter', 'push'];

/** Fill `node` with the outcome of an ended job. */
export async function outcome(job, node) {
  if (job.error) return node.replaceChildren(h('p', { class: 's-error' }, job.error.text));
  if (job.state !== 'succeeded') return node.replaceChildren();
  if (!WRITES.includes(job.kind)) return node.replaceChildren();
  const found = await api(`/api/adapters/jobs/${job.id}`).catch(() => null);
  if (!found) return node.replaceChildren();
  if (job.kind === 'push') return node.replaceChildren(h('p', {}, 'Arrived whole: ', h('b', {}, found.address ?? '')));
  if (job.kind === 'gguf' || job.kind === 'export_adapter') return node.replaceChildren(...exported(found));
  if (job.kind === 'mix') return node.replaceChildren(found.mix ? mixed(found) : '');
  return node.replaceChildren(...certificate(found));
}

/** What an export wrote and how it answered when it was read back. */
function exported({ check, adapter }) {
  const compared = check?.max_error != null;
  const words = [compared && `Read back: largest logit error ${number(check.max_error, 2)} (allowed ${
    number(check.tolerance, 2)}), ${check.tokens_changed} of ${check.tokens_compared} tokens changed.`,
  check?.note, ...(check?.notes ?? [])].filter(Boolean).join(' ');
  const path = button('Copy path', () => copy(adapter, path), 's-tool');
  return [words ? h('p', { 'data-testid': 'export-check' }, words) : '',
    h('p', {}, h('span', { class: 's-path' }, adapter), ' ', path,
      button('Push to the hub …', () => askPush(adapter), 's-tool'))];
}

function mixed({ mix, adapter }) {
  const exact = mix.how === 'concatenate';
  return h('p', {}, `"${short(adapter)}" is `, exact ? 'exactly the weighted sum'
    : `${mix.how.toUpperCase()}`, ', ', h('b', {}, `${number(100 * mix.error, 2)}\u202f%`),
  exact ? ' away from it by rounding.' : ' away from the weighted sum (truncation included).');
}

/** The certificate: the written files were loaded by a fresh process and answered like the stack. */
function certificate({ certificate: found, adapter }) {
  const compare = `/compare?lane=${encodeURIComponent(adapter)}`;
  if (!found || found.max_error === undefined) {
    return [h('p', { class: 's-quiet' }, `Merged into ${adapter}; its certificate is gone.`)];
  }
  const error = `${number(found.max_error, 2)} (allowed ${number(found.tolerance, 2)})`;
  const rows = [
    ['Largest logit error', error],
    ['Mean logit error', number(found.mean_error, 2)],
    ['Tokens changed', `${found.tokens_changed} of ${found.tokens_compared}`],
    ['Precision', `${found.base_precision} base, ${found.merged_precision} result`],
    ['Merged', found.merged.join(', ')],
    found.left.length && ['Stays an adapter', found.left.map(short).join(', ')],
    ['Files', found.files?.slice(0, 16)],
  ].filter(Boolean);
  return [h('details', { class: 's-certificate', 'data-testid': 'certificate' },
    h('summary', {}, `Certificate: reloaded, it answers like the stack; largest logit error ${error}`),
    h('dl', { class: 's-pairs' }, rows.map(([name, value]) => h('div', {}, h('dt', {}, name), h('dd', {}, value))))),
  h('p', {}, h('span', { class: 's-path' }, adapter), ' ', h('a', { href: compare }, 'Chat with it'), ' ',
    button('Push to the hub …', () => askPush(adapter), 's-tool'))];
}
