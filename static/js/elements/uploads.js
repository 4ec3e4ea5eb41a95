// Every upload of this tab, outside the pages: they go on while the reader looks at something else. tus 1.0.
export const uploads = new Map();
const changed = () => dispatchEvent(new CustomEvent("uploads-changed"));

export async function start(file, { endpoint, metadata, csrf, library, url = null, isChanged = false }) {
  if (!window.tus) await import(library);
  const id = `${file.name}-${file.size}-${file.lastModified}`;
  if (["sending", "checking"].includes(uploads.get(id)?.state)) return;
  const entry = { id, file, sent: 0, isChanged, state: "checking", error: "", since: performance.now(), from: 0 };
  uploads.set(id, entry);
  changed();
  const mark = await fingerprint(file).catch(() => null);
  if (!mark) return Object.assign(entry, { state: "failed", error: "This file cannot be read any more. Remove it here and choose it again." }), changed();
  const fail = (error) => {
    const said = error.originalResponse?.getHeader("X-Error");
    Object.assign(entry, { state: "failed", error: said ? decodeURIComponent(said) : "The connection broke. What was sent is kept." });
    changed();
  };
  entry.upload = new tus.Upload(file, {
    endpoint, uploadUrl: url, chunkSize: 8 * 2 ** 20, retryDelays: [0, 1000, 3000, 10000, 30000], removeFingerprintOnSuccess: true,
    metadata: { ...metadata, filename: file.name, filetype: file.type, fingerprint: mark },
    headers: { "Upload-Fingerprint": mark, ...(csrf && { "X-CSRF-Token": csrf }) },
    fingerprint: async () => `${endpoint}-${file.name}-${file.size}-${mark}`,
    onProgress: (sent) => ((entry.sent = sent), changed()),
    onError: fail,
    onSuccess: () => {
      Object.assign(entry, { state: "done", sent: file.size, url: entry.upload.url });
      changed();
      document.body.dispatchEvent(new CustomEvent("uploaded", { detail: { name: file.name, url: entry.url } }));
    },
  });
  const [earlier] = url ? [] : await entry.upload.findPreviousUploads();
  if (earlier) entry.upload.resumeFromPreviousUpload(earlier);
  resume(entry);
}

// When the file was changed last, and a hash of its first and last piece: enough to know it again, soon and anywhere.
export async function fingerprint(file) {
  let [one, two] = [0xdeadbeef, 0x41c6ce57];
  for (const from of [0, Math.max(0, file.size - 2 ** 18)]) {
    for (const byte of new Uint8Array(await file.slice(from, from + 2 ** 18).arrayBuffer())) {
      one = Math.imul(one ^ byte, 2654435761);
      two = Math.imul(two ^ byte, 1597334677) ^ (one >>> 15);
    }
  }
  return `${file.lastModified}-${(one >>> 0).toString(16)}${(two >>> 0).toString(16)}`;
}

export function resume(entry) {
  Object.assign(entry, { state: "sending", since: performance.now(), from: entry.sent });
  entry.upload.start();
  changed();
}
export function pause(entry) {
  entry.upload.abort();
  entry.state = "paused";
  changed();
}
export function forget(entry) {
  if (entry.state !== "done") entry.upload?.abort(true).catch(() => {});
  uploads.delete(entry.id);
  changed();
}

// "1.2 of 8.4 GB · 94 MB/s · about 1 min left"
export function sentence(entry) {
  if (entry.state === "failed") return entry.error;
  if (entry.state === "done") return `${bytes(entry.file.size)} · arrived`;
  if (entry.state === "checking") return "looking for what was sent before";
  const known = `${entry.isChanged ? "has changed, sent from its start · " : ""}${bytes(entry.sent)} of ${bytes(entry.file.size)}`;
  if (entry.state === "paused") return `${known} · paused`;
  const speed = (entry.sent - entry.from) / Math.max(0.2, (performance.now() - entry.since) / 1000);
  if (speed < 1) return known;
  const left = (entry.file.size - entry.sent) / speed;
  return `${known} · ${bytes(speed)}/s · ${left < 60 ? `${Math.ceil(left)} s` : `about ${Math.ceil(left / 60)} min`} left`;
}

function bytes(count) {
  const unit = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"][Math.min(4, Math.max(0, Math.floor(Math.log10(Math.max(1, count)) / 3)))];
  const power = { byte: 0, kilobyte: 1, megabyte: 2, gigabyte: 3, terabyte: 4 }[unit];
  return new Intl.NumberFormat(document.documentElement.lang, { style: "unit", unit, maximumFractionDigits: power > 1 ? 1 : 0 }).format(count / 1000 ** power);
}
