// The network in this browser, by onnxruntime-web: a file for each stage with its exit, run in turn while images go on.

const MOST_PIXELS = 5e7;
const sessions = [];
let ort, about;

async function fetched(address) {
  let response;
  try {
    response = await fetch(new URL(address, document.baseURI));
  } catch {
    throw new Error(
      location.protocol === "file:"
        ? "A browser does not read files beside a page that is opened as a file. Run `python -m http.server` in this folder."
        : `${address} cannot be fetched.`,
    );
  }
  if (!response.ok) throw new Error(`${address} is not beside this page (${response.status}).`);
  return response;
}

async function pixels(image) {
  const bitmap = await decoded(image);
  const { width, height } = bitmap;
  if (width * height > MOST_PIXELS) throw new Error(`${width} × ${height} pixels are more than this page takes (50 million).`);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, width, height).data, rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = rgba[from];
    rgb[to++] = rgba[from + 1];
    rgb[to++] = rgba[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [1, height, width, 3]);
}

// Stage k and its exit. `values` holds what came before, by name: what a stage gives is called as the next one wants it.
async function runStage(k, values) {
  const start = performance.now();
  const feeds = Object.fromEntries(sessions[k].inputNames.map((name) => [name, values[name]]));
  Object.assign(values, await sessions[k].run(feeds));
  return performance.measure(`stage ${k + 1}`, { start }).duration; // developer tools draw it
}

function top(probabilities) {
  const order = [...probabilities.keys()].sort((one, other) => probabilities[other] - probabilities[one]).slice(0, 5);
  return order.map((label) => ({ label, class_name: about.class_names[label], probability: probabilities[label] }));
}

const engine = {
  about: "The network runs in this browser. No image leaves it.",
  async model(progress) {
    about = await (await fetched("model.json")).json();
    progress("Loading onnxruntime-web …");
    ort = await import(new URL("runtime/ort.wasm.bundle.min.mjs", document.baseURI));
    ort.env.wasm.numThreads = 1; // several would need headers of the host (cross-origin isolation)
    ort.env.wasm.wasmPaths = { wasm: new URL("runtime/ort-wasm-simd-threaded.wasm", document.baseURI).href };
    ort.env.logLevel = "error";
    for (const [k, { file, bytes }] of about.stages.entries()) {
      progress(`Loading the network: stage ${k + 1} of ${about.stages.length}, ${(bytes / 1e6).toFixed(1)} MB …`);
      sessions.push(await ort.InferenceSession.create(new Uint8Array(await (await fetched(file)).arrayBuffer())));
    }
    progress("Trying it …");
    const [, height, width] = about.image_shape;
    about.full_ms = Infinity;
    for (let turn = 0, start = performance.now(); turn < 3 || (turn < 20 && performance.now() - start < 300); turn++) {
      const values = { images: new ort.Tensor("uint8", new Uint8Array(height * width * 3), [1, height, width, 3]) };
      let whole = 0;
      for (const k of sessions.keys()) whole += await runStage(k, values);
      about.full_ms = Math.min(about.full_ms, whole);
    }
    return about;
  },
  async samples() {
    return about.samples.map(({ url, label }) => ({ label, load: async () => (await fetched(url)).blob() }));
  },
  async *predict(image, rung) {
    const { thresholds, promise } = about.ladder[rung - 1];
    const values = { images: await pixels(image) };
    let computed_ms = 0;
    for (const [k, threshold] of thresholds.entries()) {
      computed_ms += await runStage(k, values);
      const confidence = values.confidence.data[0], label = Number(values.label.data[0]);
      if (Number.isNaN(confidence)) throw new Error(`Exit ${k + 1} gives no finite numbers for this image.`);
      const isLast = k === thresholds.length - 1;
      const leaves = isLast || (threshold !== null && confidence >= Math.fround(threshold));
      const said = { exit: k + 1, label, class_name: about.class_names[label], confidence, operations: about.operations[k] };
      yield { event: "exit", data: { ...said, threshold, top: top(values.probabilities.data), leaves } };
      if (leaves) {
        yield { event: "answer", data: { ...said, rung, promise, in_time: true, queued_ms: 0, computed_ms, fingerprint: about.fingerprint } };
        return;
      }
    }
  },
};
