// The network on the server this page comes from: docs/serve.md.

const READ = ["image/png", "image/jpeg", "image/webp"];
let token = "";

async function get(address, options = {}) {
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  let response;
  try {
    response = await fetch(new URL(address, document.baseURI), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached.");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("Retry-After"));
  const error = new Error((said.error ?? `The server answers ${response.status}.`) + (wait ? ` Try again in ${wait} s.` : ""));
  error.needsToken = response.status === 401;
  throw error;
}

async function* events(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      text = (text + decoder.decode(value ?? new Uint8Array(), { stream: !done })).replaceAll("\r\n", "\n");
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) {
        const fields = { event: "message", data: "" };
        for (const line of block.split("\n")) {
          const [, name, value] = line.match(/^(\w*): ?(.*)$/) ?? [];
          if (name) fields[name] = name === "data" ? fields.data + value : value;
        }
        if (fields.data) yield { event: fields.event, data: JSON.parse(fields.data) };
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const engine = {
  about: "Images are sent to the server that this page comes from, and to nobody else.",
  useToken(value) {
    token = value;
  },
  async model() {
    return (await get("v1/model")).json();
  },
  async samples() {
    const { samples } = await (await get("v1/samples")).json();
    return samples.map(({ url, label }) => ({ label, load: async () => (await get(url.replace(/^\//, ""))).blob() }));
  },
  async *predict(image, rung, signal) {
    const body = READ.includes(image.type) ? image : await asPng(image);
    const headers = { Accept: "text/event-stream", "Content-Type": body.type };
    const response = await get(`v1/predict?rung=${rung}`, { method: "POST", body, headers, signal });
    for await (const { event, data } of events(response.body)) {
      if (event === "error") throw new Error(data.error);
      yield { event, data };
      if (event === "answer") return;
    }
    throw new Error("The server closed the connection before it had answered.");
  },
};
