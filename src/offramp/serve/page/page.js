// What people see and do. `engine` (server.js or local.js) says what is served, and answers images exit by exit.

const $ = (id) => document.getElementById(id);
const NEVER = 1e7; // a threshold beyond: no image leaves there, or, below zero, every one
const canvas = $("picture"), pen = canvas.getContext("2d");
let model, draws, cards, shown, asking;
let inSight = true; // the answer
let isDrawing = false; // whether what is on the canvas was drawn there

function make(tag, attributes = {}, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const clamped = (value) => Math.min(1, Math.max(0, value));

function percent(share) {
  const value = 100 * share;
  if (value < 100 && value > 99.95) return "> 99.9 %";
  if (value > 0 && value < 0.05) return "< 0.1 %";
  return `${value.toFixed(1)} %`;
}

const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

// A confidence in words, and where it stands between the least and the most that its measure knows.
const MEASURES = {
  softmax: { words: (value) => `${percent(value)} sure`, place: clamped },
  margin: { words: (value) => `${percent(value)} ahead of the next class`, place: clamped },
  entropy: {
    words: (value) => `entropy ${Math.abs(value).toFixed(2)}`,
    place: (value) => clamped(1 + value / Math.log(model.class_names.length)),
  },
  patience: {
    words: (value) => `agreed ${value} ${value === 1 ? "time" : "times"} in a row`,
    place: (value) => clamped(value / Math.max(1, model.exits - 1)),
  },
};

// ---- images

async function decoded(image) {
  try {
    return await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error("This cannot be read as an image. PNG, JPEG and WebP can.");
  }
}

async function asPng(image) {
  const bitmap = await decoded(image), copy = new OffscreenCanvas(bitmap.width, bitmap.height);
  copy.getContext("2d").drawImage(bitmap, 0, 0);
  return copy.convertToBlob({ type: "image/png" });
}

async function paint(image) {
  let bitmap;
  try {
    bitmap = await decoded(image);
  } catch {
    return empty(); // what it is, the engine says
  }
  const { width, height } = bitmap;
  if (!draws) {
    const scale = Math.min(1, 640 / Math.max(width, height));
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
  }
  // On a canvas that can be drawn on lies what the network sees: the largest central part of its aspect.
  const kept = Math.min(width / canvas.width, height / canvas.height);
  const [w, h] = [canvas.width * kept, canvas.height * kept];
  pen.imageSmoothingEnabled = kept > 0.5;
  pen.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h, 0, 0, canvas.width, canvas.height);
}

function empty() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

async function show(image, name, { label = null, button = null, drawn = false } = {}) {
  asking?.abort();
  const control = (asking = new AbortController());
  $("exits").setAttribute("aria-busy", "true");
  isDrawing = drawn;
  shown = { image, name, label };
  for (const other of $("samples").children) other.setAttribute("aria-pressed", other === button);
  canvas.setAttribute("aria-label", draws ? `${name}. Draw on it: arrow keys move the pen, space lowers and lifts it.` : name);
  if (!drawn) await paint(image);
  if (!control.signal.aborted) await answer();
}

function showFile(files) {
  if (!files.length) return;
  const image = [...files].find((file) => file.type.startsWith("image/"));
  if (!image) return fail(`${files[0].name || "This"} is no image. PNG, JPEG and WebP are read.`);
  show(image, image.name || "Pasted image");
}

// ---- the answer, exit by exit

async function answer() {
  asking?.abort();
  const { signal } = (asking = new AbortController());
  fail("");
  for (const card of cards) card.classList.add("old");
  $("answer").classList.add("old");
  $("exits").setAttribute("aria-busy", "true");
  try {
    for await (const { event, data } of engine.predict(shown.image, Number($("rung").value), signal)) {
      if (signal.aborted) return;
      if (event === "exit") {
        showExit(data);
        if (!data.leaves) await sleep($("slow").checked ? 900 : 0); // also lets the browser paint
        if (signal.aborted) return;
      } else if (event === "answer") showAnswer(data);
    }
  } catch (error) {
    if (signal.aborted) return;
    fail(error.message, error.needsToken);
  } finally {
    if (!signal.aborted) $("exits").removeAttribute("aria-busy");
  }
}

function mark(k, state) {
  cards[k].className = `${state} ${state === "ran" || state === "left" ? "fresh" : ""}`;
  $("road").children[k].className = state;
}

function showExit({ exit, class_name, confidence, threshold, top, leaves }) {
  const k = exit - 1, { words, place } = MEASURES[model.measure];
  mark(k, leaves ? "left" : "ran");
  const isLast = exit === model.exits, isClosed = threshold === null || threshold > NEVER;
  const needs = threshold !== null && Math.abs(threshold) < NEVER;
  let verdict = needs ? `${words(threshold)} is needed: ${leaves ? "it leaves here." : "it goes on."}` : "No image may leave here: it goes on.";
  if (isLast) verdict = "The last exit answers every image that is left.";
  else if (!isClosed && !needs) verdict = "Every image leaves here.";
  const gauge = make("div", { className: "gauge", ariaHidden: "true" }, make("i"));
  gauge.firstChild.style.width = `${100 * place(confidence)}%`;
  if (needs && !isLast) {
    gauge.append(make("em"));
    gauge.lastChild.style.left = `${100 * place(threshold)}%`;
  }
  const bars = make("ul", { className: "bars", ariaLabel: "Its most likely classes" });
  for (const { class_name: name, probability } of top) {
    const bar = make("i", { ariaHidden: "true" });
    bar.style.width = `${100 * probability}%`;
    bars.append(make("li", {}, make("span", { textContent: name, title: name }), make("span", {}, bar), make("span", { textContent: percent(probability) })));
  }
  const said = make("div", {}, make("p", { className: "said" }, make("b", { textContent: class_name }), words(confidence)), gauge);
  said.append(make("p", { className: "note", textContent: verdict }));
  cards[k].lastChild.replaceChildren(said, bars);
}

function showAnswer(data) {
  for (let k = data.exit; k < model.exits; k++) {
    mark(k, "skipped");
    cards[k].lastChild.replaceChildren(make("p", { className: "said", textContent: "Not run." }));
  }
  $("answer").classList.remove("old");
  const isWrong = shown.label !== null && shown.label !== data.label;
  $("label").textContent = data.class_name;
  $("label").classList.toggle("wrong", isWrong);
  let why = MEASURES[model.measure].words(data.confidence);
  if (shown.label !== null) why += isWrong ? `. Its label says ${model.class_names[shown.label]}.` : ", and right.";
  else why += ".";
  if (!data.in_time) why += " Time was up: this is the best answer there was.";
  $("why").textContent = why;
  const left = model.exits - data.exit, saved = 1 - data.operations;
  const skipped = left ? `${left} ${left === 1 ? "stage" : "stages"} skipped` : "no stage skipped";
  fact("exit", `${data.exit} of ${model.exits}`, skipped);
  fact("operations", percent(data.operations), left ? `${percent(saved)} saved` : "the whole network");
  if (!left) model.full_ms = data.computed_ms;
  const spared = model.full_ms - data.computed_ms; // NaN before an image went to the end
  const time = left && spared > 0 ? `about ${milliseconds(spared)} saved` : left && !(spared <= 0) ? "saved: not known yet" : "";
  fact("time", milliseconds(data.computed_ms), data.queued_ms >= 1 ? `${time}${time && "; "}${milliseconds(data.queued_ms)} waited` : time);
  const asked = Number($("rung").value);
  showPromise(data.rung, data.rung > asked ? `The server is busy and answered on rung ${data.rung} instead of ${asked}. ` : "");
  $("brief").replaceChildren(make("b", { textContent: data.class_name }), make("span", { textContent: `exit ${data.exit} of ${model.exits}, ${left ? percent(saved) : "nothing"} saved` }));
  $("brief").hidden = inSight;
  $("spoken").textContent = `${shown.name}: ${data.class_name}, ${why} Exit ${data.exit} of ${model.exits}, ${skipped}, ${percent(saved)} of the operations saved.`;
}

function fact(name, value, more) {
  $(`fact-${name}`).replaceChildren(value, make("small", { textContent: more }));
}

function fail(message, needsToken = false) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
  if (message) $("brief").hidden = true;
  if (needsToken) {
    $("token").hidden = false;
    $("token-value").focus();
  }
}

// ---- the ladder

function showPromise(rung, before = "") {
  const { promise, risk } = model.ladder[rung - 1];
  const none = "Nothing is promised of these thresholds: they were not certified.";
  $("promise").textContent = before + (promise ?? none);
  $("risk").textContent = risk == null ? `rung ${rung}` : `at most ${percentOf(risk)}`;
}

const percentOf = (risk) => `${+(100 * risk).toPrecision(3)} %`;

function moved() {
  const rung = Number($("rung").value), { promise, risk } = model.ladder[rung - 1];
  $("rung").setAttribute("aria-valuetext", `${risk == null ? "" : `at most ${percentOf(risk)}, `}rung ${rung} of ${model.ladder.length}. ${promise ?? ""}`);
  showPromise(rung);
}

// ---- drawing: on what is there, in the pixels of the network

function stroke(from, to) {
  const scale = canvas.width / model.image_shape[2];
  pen.lineCap = pen.lineJoin = "round";
  pen.lineWidth = scale * document.querySelector("[name=pen]:checked").value;
  pen.strokeStyle = document.querySelector("[name=shade]:checked").value;
  pen.beginPath();
  pen.moveTo(...from);
  pen.lineTo(...to);
  pen.stroke();
}

async function drawn() {
  const image = await new Promise((done) => canvas.toBlob(done, "image/png"));
  show(image, isDrawing || !shown ? "Your drawing" : `${shown.name}, drawn on`, { drawn: true });
}

function drawing() {
  let last = null;
  const place = ({ clientX, clientY }) => {
    const box = canvas.getBoundingClientRect();
    return [((clientX - box.left) * canvas.width) / box.width, ((clientY - box.top) * canvas.height) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    stroke(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    for (const one of event.getCoalescedEvents?.() ?? [event]) {
      const here = place(one);
      stroke(last, here);
      last = here;
    }
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, () => {
      if (last) drawn();
      last = null;
    });
  }
  // By keys: a pen that stands somewhere, and is up or down.
  const cursor = $("cursor"), steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  let at = [canvas.width / 2, canvas.height / 2], isDown = false;
  const moveCursor = () => {
    cursor.style.left = `${canvas.offsetLeft + (at[0] * canvas.offsetWidth) / canvas.width}px`;
    cursor.style.top = `${canvas.offsetTop + (at[1] * canvas.offsetHeight) / canvas.height}px`;
    cursor.className = isDown ? "down" : "";
  };
  const lift = () => {
    if (isDown) drawn();
    isDown = false;
  };
  canvas.addEventListener("keydown", (event) => {
    const step = steps[event.key], side = canvas.width / model.image_shape[2];
    if (step) {
      const to = [0, 1].map((i) => Math.min([canvas.width, canvas.height][i], Math.max(0, at[i] + step[i] * side)));
      if (isDown) stroke(at, to);
      at = to;
    } else if (event.key === " ") {
      if (isDown) lift();
      else {
        isDown = true;
        stroke(at, at);
      }
      $("spoken").textContent = isDown ? "Pen down" : "Pen up";
    } else return;
    event.preventDefault();
    cursor.hidden = false;
    moveCursor();
  });
  canvas.addEventListener("blur", () => {
    lift();
    cursor.hidden = true;
  });
}

// ---- the start

function listen() {
  $("file").addEventListener("change", (event) => {
    showFile(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  });
  for (const name of ["dragover", "drop", "dragleave"]) {
    addEventListener(name, (event) => {
      event.preventDefault();
      document.body.classList.toggle("over", name === "dragover");
      if (name === "drop") event.dataTransfer.files.length ? showFile(event.dataTransfer.files) : fail("That was no image file.");
    });
  }
  addEventListener("paste", (event) => showFile(event.clipboardData.files));
  $("paste").hidden = !navigator.clipboard?.read;
  $("paste").addEventListener("click", async () => {
    try {
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((name) => name.startsWith("image/"));
        if (type) return show(await item.getType(type), "Pasted image");
      }
      fail("There is no image to paste.");
    } catch {
      fail("The browser does not let this page paste. Use its own way: Ctrl+V.");
    }
  });
  $("clear").addEventListener("click", () => {
    empty();
    isDrawing = true;
    drawn();
  });
  // Where the answer is out of sight, below the image, a line at the foot of the window leads to it.
  new IntersectionObserver((changes) => {
    inSight = changes.at(-1).isIntersecting;
    $("brief").hidden = inSight || !$("brief").textContent || !$("problem").hidden;
  }).observe($("road"));
  let wait;
  $("rung").addEventListener("input", () => {
    moved();
    clearTimeout(wait);
    if (shown) wait = setTimeout(answer, 120);
  });
}

function build() {
  document.title = `${model.name} · offramp`;
  $("name").textContent = model.name;
  const classes = `${model.class_names.length} classes`, [channels, height, width] = model.image_shape;
  $("about").textContent = `${model.data ? `Trained on ${model.data}: ` : ""}${classes}, ${model.exits} exits. Easy images leave at an early exit; the stages behind it are not run.`;
  draws = channels === 1 && Math.max(height, width) <= 64;
  if (draws) {
    const scale = Math.max(1, Math.round(280 / Math.max(height, width)));
    [canvas.width, canvas.height] = [width * scale, height * scale];
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Canvas. Draw on it: arrow keys move the pen, space lowers and lifts it.");
    $("frame").classList.add("draws");
    $("hint").textContent = "Draw on it, light on dark; drop an image anywhere on this page, paste one, or:";
    $("tools").hidden = $("clear").hidden = false;
    drawing();
  }
  empty();
  const operations = model.operations.map((share, k) => share - (k ? model.operations[k - 1] : 0));
  const road = operations.map((share, k) => {
    const part = make("span", { textContent: k + 1, title: `stage ${k + 1}: ${percent(share)} of the operations` });
    part.style.flexGrow = Math.max(share * 100, 1);
    return part;
  });
  $("road").replaceChildren(...road);
  cards = operations.map((_, k) => {
    const accuracy = model.accuracies?.[k] == null ? "" : `${model.accuracies[k].toFixed(1)} % right on test · `;
    const about = `${accuracy}${percent(model.operations[k])} of operations`;
    const body = make("div", { className: "body" }, make("p", { className: "said", textContent: "Waits for an image." }));
    const title = make("h3", { textContent: `Exit ${k + 1}` });
    return make("li", { className: "waiting" }, make("span", { className: "node", textContent: k + 1, ariaHidden: "true" }), title, make("span", { className: "about", textContent: about }), body);
  });
  $("exits").replaceChildren(...cards);
  const rungs = model.ladder.length;
  $("slider").hidden = rungs === 1;
  $("rung").max = rungs;
  $("rung").value = 1;
  const ticks = model.ladder.map(({ rung, risk }) => make("span", { textContent: risk == null ? rung : percentOf(risk) }));
  for (const [i, tick] of ticks.entries()) tick.style.left = `${(100 * i) / Math.max(1, rungs - 1)}%`;
  $("ticks").replaceChildren(...(rungs > 8 ? [ticks[0], ticks[rungs - 1]] : ticks));
  moved();
  const foot = [engine.about, model.ladder[0].promise === model.certificate ? null : model.certificate, "Weights and policies: "].filter(Boolean).map((textContent) => make("p", { textContent }));
  foot.at(-1).append(make("code", { textContent: model.fingerprint.slice(0, 16) }));
  $("foot").replaceChildren(...foot);
  $("all").hidden = false;
}

async function buildSamples() {
  const known = await engine.samples();
  const buttons = await Promise.all(
    known.map(async ({ label, load }, i) => {
      const image = await load(), picture = make("img", { src: URL.createObjectURL(image), alt: "" });
      await picture.decode().catch(() => {});
      picture.classList.toggle("small", picture.naturalWidth <= 64);
      const button = make("button", { type: "button", ariaLabel: `Sample ${i + 1}`, ariaPressed: "false" }, picture);
      button.addEventListener("click", () => show(image, `Sample ${i + 1}`, { label, button }));
      return button;
    }),
  );
  $("samples").replaceChildren(...buttons);
  $("samples-part").hidden = !buttons.length;
}

async function start() {
  try {
    model = await engine.model((text) => ($("about").textContent = text));
    $("token").hidden = true;
    fail("");
    build();
    listen();
    await buildSamples();
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (!model) $("about").textContent = "";
    fail(error.message, error.needsToken);
  }
}

$("token").addEventListener("submit", (event) => {
  event.preventDefault();
  engine.useToken($("token-value").value);
  $("token").hidden = true;
  if (model) answer();
  else start();
});
start();
