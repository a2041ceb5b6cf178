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
