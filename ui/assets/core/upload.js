// Uploads: send a data file with progress; the Train page's upload button.

import { at, bytes, h, text, typeInto } from './dom.js';

/** Send a file and return its path in the home.
 *  `keep` stores it to train on; `onProgress` is called with words and a share from 0 to 1. */
export function sendFile(file, { keep = false, onProgress }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report how much is sent
    request.open('POST', at(`/api/data/upload?keep=${keep}&name=${encodeURIComponent(file.name.slice(-120))}`));
    request.upload.onprogress = (event) => onProgress(
      `Uploading ${file.name}: ${bytes(event.loaded)} of ${bytes(file.size)}`,
      event.loaded / Math.max(1, file.size));
    request.onerror = () => reject(new Error('The upload failed. Is the server still running?'));
    request.onload = () => {
      const answer = JSON.parse(request.responseText || '{}');
      if (request.status === 200) resolve(answer.path);
      else reject(new Error(answer.error?.text ?? `The server answered ${request.status}.`));
    };
    request.send(file);
  });
}

/** A button that uploads a data file and chooses it as the dataset of the form. */
export class Upload extends HTMLElement {
  connectedCallback() {
    if (this.children.length) return;
    const { accept } = JSON.parse(this.dataset.value);
    this.file = h('input', { type: 'file', hidden: true, accept, 'data-testid': 'train-file',
      onchange: () => this.send(this.file.files[0]) });
    this.line = h('span', { role: 'status' });
    this.replaceChildren(this.line, this.file, h('button', { type: 'button', class: 's-link',
      onclick: () => this.file.click() }, 'Upload a data file …'));
  }

  async send(file) {
    if (!file) return;
    this.file.value = '';
    this.line.className = 's-quiet';
    try {
      const path = await sendFile(file, { keep: true, onProgress: (words) => text(this.line, words) });
      text(this.line, '');
      typeInto(document.querySelector('#uploaded :is(input, textarea)'), path);
    } catch (error) {
      this.line.className = 's-error';
      text(this.line, error.message);
    }
  }
}
