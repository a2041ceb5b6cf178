// Send a data file with progress.

import { at, bytes, t } from './dom.js';

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
    request.onerror = () => reject(new Error(t`The upload failed. Is the server still running?`));
    request.onload = () => {
      const answer = JSON.parse(request.responseText || '{}');
      if (request.status === 200) resolve(answer.path);
      else reject(new Error(answer.error?.text ?? t`The server answered ${request.status}.`));
    };
    request.send(file);
  });
}
