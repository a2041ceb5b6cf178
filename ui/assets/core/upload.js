// Data files: send one with progress, and the button of the Train page that imports and chooses it.

import { api, at, button, bytes, dots, h, later, redraw, t, text, word } from './dom.js';
import { isWaiting } from './live.js';

/** Send a file and return its path in the home; `onProgress` is called with words and a share from 0 to 1.
 *  Leaving the page in the meantime is asked about. */
export function sendFile(file, { onProgress }) {
  const stay = (event) => event.preventDefault();
  addEventListener('beforeunload', stay);
  return transfer(file, onProgress).finally(() => removeEventListener('beforeunload', stay));
}

function transfer(file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report how much is sent
    request.open('POST', at(`/api/data/upload?name=${encodeURIComponent(file.name.slice(-120))}`));
    request.upload.onprogress = (event) => onProgress(
      t`Uploading ${file.name}: ${bytes(event.loaded)} of ${bytes(file.size)}`,
      event.loaded / Math.max(1, file.size));
    request.responseType = 'json'; // null where it is none, such as the error page of a proxy
    request.onerror = request.onabort = () => reject(new Error(t`The upload failed. Is the server still running?`));
    request.onload = () => {
      const { response, status } = request;
      if (response?.path) resolve(response.path);
      else reject(new Error(response?.error?.text ?? t`The server answered ${status}.`));
    };
    request.send(file);
  });
}

/** A button that imports a data file as the Data page does, with a line that shows how far it is. */
export class Upload {
  /** `use` is called with the name of the imported dataset; `place` sets two of a page apart. */
  constructor(use, place = 'train') {
    this.use = use;
    this.line = h('p.s-uploaded', { role: 'status', testid: `${place}-upload` });
    this.file = h('input', { type: 'file', hidden: true, testid: `${place}-file`,
      label: t`Data file`, onchange: (event) => { event.stopPropagation(); this.send(this.file.files[0]); } });
    this.element = h('div', this.file, button(t`Upload a data file …`, () => this.file.click(), 's-link'));
  }

  say(words, kind = 's-quiet') {
    this.line.className = `s-uploaded ${kind}`;
    redraw(this.line, ...[].concat(words));
  }

  async send(file) {
    if (!file) return;
    this.file.value = '';
    try {
      const path = await sendFile(file, { onProgress: (words) => this.say(words) });
      this.say(t`Reading ${file.name} …`);
      const { problem } = await api('/api/data/look', { path });
      if (problem) {
        sessionStorage.setItem('studio.uploaded', path);
        this.say([h('a.s-button.s-primary', { href: `/data?import=${encodeURIComponent(path)}` },
          t`Choose what its columns are …`), ' ', problem]);
        return;
      }
      const job = await api('/api/do/data.import', { source: path, uploaded: true });
      const waits = h('span');
      redraw(this.line, h('a', { href: `/runs?run=${job.id}` }, t`Importing …`), ' ', waits);
      let found = job, failures = 0;
      while (!['succeeded', 'failed', 'cancelled'].includes(found.state)) {
        await later(300);
        text(waits, isWaiting(found) ? dots(word(found.state), found.waits) : '');
        try { found = await api(`/api/outcome/${job.id}`); failures = 0; } catch (error) {
          if (error.kind || ++failures > 30) throw error; // it was deleted, or the server is gone
        }
      }
      if (found.state !== 'succeeded') throw new Error(found.error?.text ?? t`The import was ${word(found.state)}.`);
      this.say('');
      this.use(found.outcome.name ?? found.outcome.dataset);
    } catch (error) { this.say(error.message, 's-error'); }
  }
}
