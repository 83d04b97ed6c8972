// onnxruntime-web under Node, WebAssembly execution, on a package's model.onnx. Started by web_worker.py:
//
//     node web_client.mjs ENVIRONMENT      ENVIRONMENT holds node_modules with onnxruntime-web
//
// One JSON request a line on standard input, one JSON answer a line on standard output: {"open": {directory, data, threads}},
// {"greedy": {prompt, count}}. An exception becomes {"error": its message}. The end of input ends the process.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';

console.log = console.error; // what the library prints must not look like an answer
const require = createRequire(join(resolve(process.argv[2]), 'package.json'));
const ort = require('onnxruntime-web');
const PAST = 'past_key_values.';
let session;
let opened;

async function open({ directory, data, threads }) {
  ort.env.logLevel = 'error';
  ort.env.wasm.numThreads = threads;
  const began = performance.now();
  const options = { executionProviders: ['wasm'], graphOptimizationLevel: 'all' };
  if (data) options.externalData = [{ path: data, data: readFileSync(join(directory, data)) }];
  session = await ort.InferenceSession.create(readFileSync(join(directory, 'model.onnx')), options);
  opened = (performance.now() - began) / 1000;
  return { load_seconds: opened };
}

function integers(values) {
  return new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
}

function emptyCache() {
  const found = {};
  for (const value of session.inputMetadata ?? []) {
    if (!value.name.startsWith(PAST)) continue;
    const shape = value.shape.map((size, axis) => (typeof size === 'number' ? size : axis === 0 ? 1 : 0));
    found[value.name] = new ort.Tensor('float32', new Float32Array(0), shape);
  }
  return found;
}

async function run(ids, past, cache) {
  const total = past + ids.length;
  const feeds = {
    input_ids: integers(ids),
    attention_mask: integers(new Array(total).fill(1)),
    position_ids: integers(ids.map((_, at) => past + at)),
    ...cache,
  };
  const outputs = await session.run(feeds);
  const next = {};
  for (const name of Object.keys(cache)) next[name] = outputs[name.replace(PAST, 'present.')];
  const [, rows, vocab] = outputs.logits.dims;
  return [largest(outputs.logits.data, (rows - 1) * vocab, vocab), next];
}

function largest(values, start, count) {
  let best = 0;
  for (let at = 1; at < count; at++) if (values[start + at] > values[start + best]) best = at;
  return best;
}

async function greedy({ prompt, count }) {
  const tokens = [];
  let [ids, past, cache] = [prompt, 0, emptyCache()];
  const marks = [performance.now()];
  while (tokens.length < count) {
    const [token, next] = await run(ids, past, cache);
    tokens.push(token);
    marks.push(performance.now());
    [ids, past, cache] = [[token], past + ids.length, next];
  }
  return {
    tokens,
    prefill_s: (marks[1] - marks[0]) / 1000,
    decode_s: (marks.at(-1) - marks[1]) / 1000,
    proof: { provider: 'wasm', threads: ort.env.wasm.numThreads, simd: ort.env.wasm.simd ?? true },
    versions: { 'onnxruntime-web': ort.env.versions.web, node: process.version },
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const request = JSON.parse(line);
    answer = request.open ? await open(request.open) : await greedy(request.greedy);
  } catch (error) {
    answer = { error: String(error?.message ?? error) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
process.exit(0);
