"use strict";
// The page of a served model: sends one picture, draws the classes that come back over it. Texts are set as text, never as HTML.

const SIDE = 2048; // longest side of the drawn mask; a larger one is sampled, the download is whole
const STEP = 0.05;
const get = (id) => document.getElementById(id);
const state = { model: null, indices: null, alone: null, request: null, urls: [] };

function element(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

function show(error, status) {
  get("error").textContent = error;
  get("error").hidden = !error;
  get("status").textContent = status;
}

const percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e6 ? 3 : 1)} MB`;

// Fetches JSON; an answer that is none, or says what is wrong, becomes an Error with one sentence.
async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer, or broke off; it may have ended: try again.");
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found) return found;
  const busy = answer.status === 503 ? "the server has too much to do; try again in a moment" : `the server answered ${answer.status}`;
  throw new Error(found && typeof found.error === "string" ? found.error : busy);
}

function swatch(entry) {
  const node = element("span", undefined, "swatch");
  node.style.backgroundColor = `rgb(${entry.color.join(" ")})`;
  return node;
}

function kind(entry) {
  return element("span", entry.kind === "background" ? "rest" : entry.kind, `kind ${entry.kind}`);
}

function listOthers(present) {
  const others = state.model.classes.filter((entry) => !present.has(entry.index));
  get("known").querySelector("summary").textContent =
    present.size ? `${others.length} classes are not in the picture` : `The ${others.length} classes that the model knows`;
  get("others").replaceChildren(...others.map((entry) => {
    const item = element("li");
    item.append(swatch(entry), element("span", entry.name), kind(entry));
    return item;
  }));
}

function listClasses(found) {
  const rows = state.model.classes.filter((entry) => Object.hasOwn(found.classes, entry.name));
  rows.sort((a, b) => found.classes[b.name].share - found.classes[a.name].share);
  get("legend").replaceChildren(...rows.map((entry) => {
    const facts = found.classes[entry.name], item = element("li"), button = element("button");
    button.type = "button";
    button.dataset.index = entry.index;
    button.title = `${facts.pixels} pixels, mean confidence ${percent(facts.confidence)}`;
    button.append(swatch(entry), element("span", entry.name, "name"), kind(entry), element("span", percent(facts.share), "share"));
    button.addEventListener("click", () => isolate(state.alone === entry.index ? null : entry.index));
    item.append(button);
    return item;
  }));
  listOthers(new Set(rows.map((entry) => entry.index)));
}

function isolate(index) {
  state.alone = index;
  for (const button of get("legend").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
  }
  get("view").classList.toggle("alone", index !== null);
  paint();
}

// Colours the indices: the background stays clear unless it is looked at alone; where two classes meet, the line is white.
function paint() {
  const { indices, alone, model } = state, canvas = get("mask");
  if (!indices) return;
  const { width, height, values } = indices, context = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  const picture = context.createImageData(width, height), pixels = new Uint32Array(picture.data.buffer);
  const probe = new Uint8ClampedArray(4), word = new Uint32Array(probe.buffer);
  const table = model.classes.map((entry) => {
    probe.set([...entry.color, 255]);
    return (alone === null ? entry.index !== 0 : entry.index === alone) ? word[0] : 0;
  });
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const value = values[i];
      const left = x ? values[i - 1] : value, above = y ? values[i - width] : value;
      const edge = (left !== value && (table[left] || table[value])) || (above !== value && (table[above] || table[value]));
      pixels[i] = edge ? 0xffffffff : table[value];
    }
  }
  context.putImageData(picture, 0, 0);
}

async function readIndices(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height), values = new Uint8Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = data[4 * i];
  return { width, height, values };
}

function url(blob) {
  state.urls.push(URL.createObjectURL(blob));
  return state.urls.at(-1);
}

async function showPhoto(file, found) {
  const photo = get("photo");
  photo.src = url(file);
  let seen = await photo.decode().then(() => true, () => false);
  seen = seen && Math.abs(photo.naturalWidth / photo.naturalHeight - found.width / found.height) < 0.02 * (found.width / found.height);
  photo.hidden = !seen;
  get("unseen").hidden = seen;
}

async function segment(file) {
  state.request?.abort();
  const request = new AbortController(), started = performance.now();
  state.request = request;
  get("result").hidden = true;
  document.body.setAttribute("aria-busy", "true");
  show("", `Segmenting ${file.name || "the picture"} …`);
  try {
    state.model ??= await ask("model");
    listOthers(new Set());
    if (file.size > state.model.max_bytes) {
      throw new Error(`the picture has ${megabytes(file.size)}; expected at most ${megabytes(state.model.max_bytes)}`);
    }
    const found = await ask("predict?format=json", { method: "POST", body: file, signal: request.signal });
    const mask = new Blob([Uint8Array.from(atob(found.mask), (c) => c.charCodeAt(0))], { type: "image/png" });
    const indices = await readIndices(mask);
    if (state.request !== request) return;
    state.urls.splice(0).forEach((old) => URL.revokeObjectURL(old));
    state.indices = indices;
    await showPhoto(file, found);
    get("view").style.setProperty("--ratio", found.width / found.height);
    get("view").classList.toggle("small", Math.max(found.width, found.height) < 256);
    const names = state.model.classes.filter((entry) => entry.index && Object.hasOwn(found.classes, entry.name)).map((entry) => entry.name);
    get("view").setAttribute("aria-label", `The picture with its classes drawn over it: ${names.join(", ") || "background alone"}`);
    get("download").href = url(mask);
    get("download").download = `${(file.name || "picture").replace(/\.[^.]*$/, "")}_mask.png`;
    listClasses(found);
    isolate(null);
    get("known").open = false;
    get("result").hidden = false;
    const seconds = ((performance.now() - started) / 1000).toFixed(2);
    show("", `${found.width} x ${found.height} pixels, mean confidence ${percent(found.confidence)}, ${seconds} s`);
  } catch (error) {
    if (state.request === request) show(error.message, "");
  } finally {
    if (state.request === request) document.body.removeAttribute("aria-busy");
  }
}

function take(files) {
  if (files?.length) segment(files[0]);
}

// Of a point in the picture: the class index there.
function indexAt(event) {
  const box = get("view").getBoundingClientRect(), { width, height, values } = state.indices;
  const x = Math.floor((event.clientX - box.left) / box.width * width), y = Math.floor((event.clientY - box.top) / box.height * height);
  return values[Math.min(height - 1, Math.max(0, y)) * width + Math.min(width - 1, Math.max(0, x))];
}

function setOpacity(value) {
  get("opacity").value = value;
  get("view").style.setProperty("--opacity", get("opacity").value);
}

get("file").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => take(event.clipboardData?.files));
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer?.files);
});
get("opacity").addEventListener("input", (event) => setOpacity(event.target.value));
get("view").addEventListener("click", (event) => {
  const index = indexAt(event);
  isolate(state.alone === index ? null : index);
});
get("view").addEventListener("pointermove", (event) => {
  get("view").title = state.model.classes[indexAt(event)].name;
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || get("result").hidden) return;
  if (event.key === "Escape") isolate(null);
  if (event.key === "[" || event.key === "]") setOpacity(Number(get("opacity").value) + (event.key === "]" ? STEP : -STEP));
});
ask("model").then((model) => {
  state.model = model;
  const novel = model.classes.filter((entry) => entry.kind === "novel").length;
  get("about").textContent = `${model.name}: ${model.classes.length - 1 - novel} base and ${novel} novel classes`;
  get("limits").textContent =
    `JPEG, PNG, TIFF, WebP or BMP, at most ${megabytes(model.max_bytes)}. It goes to this server and is not kept there.`;
  listOthers(new Set());
}).catch((error) => show(error.message, ""));
