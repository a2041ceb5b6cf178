// Upload a data file on the Train page: it is imported as on the Data page, and chosen.

import { api, button, dots, h, later, redraw, t, text, word } from '../core/dom.js';
import { isWaiting } from '../core/live.js';
import { sendFile } from '../core/upload.js';

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
