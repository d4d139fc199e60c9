// Sound in the page: decoding what the server does not read, WAV files, the picture, the microphone.

const DECODING_RATE = 48000;

/** Whether the server reads these first bytes as they are (libsndfile's formats); others are decoded here. */
export function isReadByServer(head) {
  const text = String.fromCharCode(...head.subarray(0, 12));
  const starts = ["RIFF", "RF64", "fLaC", "OggS", "ID3", "FORM", ".snd", "caff", "riff"];
  return starts.some((mark) => text.startsWith(mark)) || (head[0] === 0xff && (head[1] & 0xe6) >= 0xe2);
}

/** The samples of an encoded recording as an AudioBuffer; throws where the browser does not know the format. */
export async function decode(blob) {
  const context = new OfflineAudioContext(1, 1, DECODING_RATE);
  return context.decodeAudioData(await blob.arrayBuffer());
}

/** The mean of a buffer's channels. */
export function mono(buffer) {
  const mixed = buffer.getChannelData(0).slice();
  for (let c = 1; c < buffer.numberOfChannels; c++) {
    const more = buffer.getChannelData(c);
    for (let i = 0; i < mixed.length; i++) mixed[i] += more[i];
  }
  if (buffer.numberOfChannels > 1) for (let i = 0; i < mixed.length; i++) mixed[i] /= buffer.numberOfChannels;
  return mixed;
}

/** Samples as a WAV file of 16 bits. */
export function toWav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true); view.setUint16(32, 2, true);
  view.setUint16(34, 16, true); text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i++) {
    view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, samples[i]))), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

/** Magnitudes of a radix-2 FFT of real samples, in place: re and im have a length that is a power of two. */
function transform(re, im) {
  const n = re.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [re[i], re[j]] = [re[j], re[i]];
  }
  for (let size = 2; size <= n; size <<= 1) {
    const half = size >> 1, step = (-2 * Math.PI) / size;
    for (let k = 0; k < half; k++) {
      const c = Math.cos(step * k), s = Math.sin(step * k);
      for (let i = k; i < n; i += size) {
        const j = i + half, x = re[j] * c - im[j] * s, y = re[j] * s + im[j] * c;
        re[j] = re[i] - x; im[j] = im[i] - y; re[i] += x; im[i] += y;
      }
    }
  }
}

const STOPS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];
function colour(level) {
  const place = Math.max(0, Math.min(0.9999, level)) * (STOPS.length - 1), i = Math.floor(place), part = place - i;
  return STOPS[i].map((value, c) => value + (STOPS[i + 1][c] - value) * part);
}

/** Draw a spectrogram up to highestHz: 80 dB from dark to bright, time to the right. */
export function draw(canvas, samples, rate, highestHz) {
  const size = 1024, looks = 3, rows = Math.max(1, Math.min(size / 2, Math.round((highestHz / rate) * size)));
  const columns = Math.max(1, Math.min(1200, Math.ceil(samples.length / 128)));
  const window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
  const power = new Float32Array(columns * rows);
  const re = new Float32Array(size), im = new Float32Array(size);
  let loudest = 1e-10;
  for (let x = 0; x < columns; x++) {
    for (let look = 0; look < looks; look++) {
      const centre = Math.floor(((x + (look + 0.5) / looks) / columns) * samples.length);
      for (let i = 0; i < size; i++) re[i] = (samples[centre - size / 2 + i] || 0) * window[i];
      im.fill(0);
      transform(re, im);
      for (let y = 0; y < rows; y++) {
        const value = re[y + 1] ** 2 + im[y + 1] ** 2, at = x * rows + y;
        if (value > power[at]) power[at] = value;
        if (value > loudest) loudest = value;
      }
    }
  }
  canvas.width = columns; canvas.height = rows;
  const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows);
  for (let x = 0; x < columns; x++) {
    for (let y = 0; y < rows; y++) {
      const level = 1 + Math.log10(Math.max(power[x * rows + y], 1e-20) / loudest) / 8;
      const at = 4 * ((rows - 1 - y) * columns + x), [r, g, b] = colour(level);
      picture.data[at] = r; picture.data[at + 1] = g; picture.data[at + 2] = b; picture.data[at + 3] = 255;
    }
  }
  context.putImageData(picture, 0, 0);
}

/** Records the microphone. start() asks for it, stop() gives the recording as the browser encodes it. */
export class Microphone {
  async start() {
    if (!navigator.mediaDevices) throw new Error("no microphone here: browsers give it to https and localhost alone");
    const settings = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: settings });
    this.recorder = new MediaRecorder(this.stream);
    this.parts = [];
    this.recorder.ondataavailable = (event) => this.parts.push(event.data);
    this.recorder.start();
  }

  async stop() {
    const ended = new Promise((done) => { this.recorder.onstop = done; });
    this.recorder.stop();
    await ended;
    this.stream.getTracks().forEach((track) => track.stop());
    return new Blob(this.parts, { type: this.recorder.mimeType });
  }
}
