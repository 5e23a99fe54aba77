/** Made from the .wgsl files beside it by `deno run -A tools/build_shaders.ts`: don't edit. */
import type { ShaderFile } from "../stage.ts";

export const ATTEND_FEW: ShaderFile = {
  name: "backend/attend_few.wgsl",
  text: `// Attention of few queries over stored rows, as of a token: parameters as of \`attend\` in attention.wgsl.
//
// One workgroup takes four (query, query head) pairs of one KV head and some rows, in steps of 64: 1. one invocation gives
// the score of one pair and row; keys come through workgroup memory, 32 numbers of each at a time; 2. the softmax so far;
// 3. an invocation adds one number of the values of some rows to all four pairs. merge.wgsl brings splits together.
//
// D is a multiple of 4, at most 256. Loops over what an invocation holds are written out: see multiply.wgsl.

override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8. */
override KIND: u32 = 0u;
/** Query heads, and how many share a KV head. */
override HEADS: u32 = 1u;
override GROUP: u32 = 1u;

const SIZE = 256u;
const ROWS = 64u;
const PAIRS = 4u;
/** Quads of a key that are at hand. */
const DEPTH = 8u;
/** Below every score. */
const LOWEST = -3.4e38;
const UNMASKED = 0xffffffffu;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> queries: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2f>;
@group(0) @binding(7) var<storage, read> biases: array<f32>;

/** [DEPTH, ROWS]; at the end what parts of the rows gave. */
var<workgroup> at_hand: array<vec4f, 512>;
/** [D / 4, PAIRS] */
var<workgroup> query: array<vec4f, 256>;
/** Scores, then their exp(score - largest), [ROWS, PAIRS]. */
var<workgroup> score: array<f32, 256>;
var<workgroup> part_largest: array<f32, 64>;
var<workgroup> largest: array<f32, 4>;
var<workgroup> fade: array<f32, 4>;

fn stride() -> u32 {
  if (KIND == 0u) { return D; }
  return select(D / 4u + 1u, D / 2u, KIND == 1u);
}

fn seen_by(t: u32, count: u32, length: u32, reach: u32) -> u32 {
  if (reach == UNMASKED) { return length; }
  return length - count + t + 1u;
}

fn bias_of(i: u32, table: u32) -> f32 {
  if (i >= params[table + 3u]) { return 0.0; }
  return biases[params[table + 2u] + i];
}

fn bytes(word: u32) -> vec4f {
  return vec4f((vec4i(vec4u(word) << vec4u(24u, 16u, 8u, 0u))) >> vec4u(24u));
}

/** Numbers 4q ... 4q + 3 of the key at a word. */
fn key(at: u32, q: u32) -> vec4f {
  if (KIND == 0u) {
    let i = at + 4u * q;
    return bitcast<vec4f>(vec4u(keys[i], keys[i + 1u], keys[i + 2u], keys[i + 3u]));
  }
  if (KIND == 1u) { return vec4f(unpack2x16float(keys[at + 2u * q]), unpack2x16float(keys[at + 2u * q + 1u])); }
  return bytes(keys[at + 1u + q]) * bitcast<f32>(keys[at]);
}

fn value(at: u32, d: u32) -> f32 {
  if (KIND == 0u) { return bitcast<f32>(values[at + d]); }
  if (KIND == 1u) { return unpack2x16float(values[at + d / 2u])[d & 1u]; }
  let whole = extractBits(bitcast<i32>(values[at + 1u + d / 4u]), 8u * (d & 3u), 8u);
  return f32(whole) * bitcast<f32>(values[at]);
}

/** Quad i % DEPTH behind \`depth\` of row i / DEPTH; 0 beyond the end. */
fn load_key(i: u32, depth: u32, first_word: u32, row: u32, end: u32) {
  let q = depth + i % DEPTH;
  let r = row + i / DEPTH;
  var x = vec4f();
  if (r < end && q < D / 4u) { x = key(first_word + r * stride(), q); }
  at_hand[(i % DEPTH) * ROWS + i / DEPTH] = x;
}

fn product(q: u32, depth: u32, row: u32, pair: u32) -> f32 {
  return dot(at_hand[q * ROWS + row], query[(depth + q) * PAIRS + pair]);
}

/** exp(score - largest) of row r for all pairs. */
fn weights_of(r: u32) -> vec4f {
  return vec4f(score[r * PAIRS], score[r * PAIRS + 1u], score[r * PAIRS + 2u], score[r * PAIRS + 3u]);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let count = params[0];
  let kv_head = params[1] + group.y;
  let reach = params[3];
  let table = 5u + 4u * group.y;
  let split = params[4] + group.z;
  let first_word = params[table];
  let length = params[table + 1u];
  let pairs = count * GROUP;
  let first_pair = group.x * PAIRS;
  let last_query = (min(first_pair + PAIRS, pairs) - 1u) / GROUP;
  let end = min(seen_by(last_query, count, length, reach), (split + 1u) * params[2]);
  var start = split * params[2];
  let first_seen = seen_by(first_pair / GROUP, count, length, reach);
  if (reach > 0u && first_seen > reach) { start = max(start, (first_seen - reach) / ROWS * ROWS); }

  if (local < D) {
    let pair = first_pair + local % PAIRS;
    var x = vec4f();
    if (pair < pairs) {
      let i = ((pair / GROUP) * HEADS + kv_head * GROUP + pair % GROUP) * D + local / PAIRS * 4u;
      x = vec4f(queries[i], queries[i + 1u], queries[i + 2u], queries[i + 3u]);
    }
    query[local] = x;
  }
  if (local < PAIRS) { largest[local] = LOWEST; }

  // The row and the pair of this invocation's score; of the values its number, and its part of a step's rows.
  let my_row = local % ROWS;
  let my_pair = local / ROWS;
  let pair = first_pair + my_pair;
  let seen = seen_by(pair / GROUP, count, length, reach);
  let d = local % D;
  let my_part = local / D;
  let parts = SIZE / D;
  let part_rows = (ROWS / 4u + parts - 1u) / parts * 4u;
  var sum = vec4f();
  var all = vec4f();

  for (var row = start; row < end; row += ROWS) {
    var s = 0.0;
    for (var depth = 0u; depth < D / 4u; depth += DEPTH) {
      workgroupBarrier();
      load_key(local, depth, first_word, row, end);
      load_key(local + SIZE, depth, first_word, row, end);
      workgroupBarrier();
      s += product(0u, depth, my_row, my_pair) + product(1u, depth, my_row, my_pair);
      s += product(2u, depth, my_row, my_pair) + product(3u, depth, my_row, my_pair);
      s += product(4u, depth, my_row, my_pair) + product(5u, depth, my_row, my_pair);
      s += product(6u, depth, my_row, my_pair) + product(7u, depth, my_row, my_pair);
    }
    let i = row + my_row;
    let visible = pair < pairs && i < seen && i < end && (reach == 0u || reach == UNMASKED || i + reach >= seen);
    s = select(LOWEST, s / sqrt(f32(D)) + bias_of(i, table), visible);
    score[my_row * PAIRS + my_pair] = s;
    workgroupBarrier();
    if (local < 64u) {
      let first = local / PAIRS * 16u + local % PAIRS;
      part_largest[local] = max(max(score[first], score[first + 4u]), max(score[first + 8u], score[first + 12u]));
    }
    workgroupBarrier();
    if (local < PAIRS) {
      let before = largest[local];
      var most = before;
      for (var j = local; j < 64u; j += 4u) { most = max(most, part_largest[j]); }
      largest[local] = most;
      fade[local] = select(0.0, exp(before - most), before > LOWEST);
    }
    workgroupBarrier();
    score[my_row * PAIRS + my_pair] = select(0.0, exp(s - largest[my_pair]), s > LOWEST);
    workgroupBarrier();
    let faded = vec4f(fade[0], fade[1], fade[2], fade[3]);
    sum *= faded;
    all *= faded;
    // Rows beyond the end weigh nothing: the last one stands for them.
    let last = end - 1u;
    for (var r = my_part * part_rows; r < min((my_part + 1u) * part_rows, ROWS); r += 4u) {
      let a = value(first_word + min(row + r, last) * stride(), d);
      let b = value(first_word + min(row + r + 1u, last) * stride(), d);
      let c = value(first_word + min(row + r + 2u, last) * stride(), d);
      let e = value(first_word + min(row + r + 3u, last) * stride(), d);
      let w = weights_of(r);
      let x = weights_of(r + 1u);
      let y = weights_of(r + 2u);
      let z = weights_of(r + 3u);
      sum += w * a + x * b + y * c + z * e;
      all += w + x + y + z;
    }
  }

  workgroupBarrier();
  if (my_part < parts) {
    at_hand[local] = sum;
    if (d == 0u) { at_hand[SIZE + my_part] = all; }
  }
  workgroupBarrier();
  if (local >= D) { return; }
  var total = vec4f();
  var weight = vec4f();
  for (var p = 0u; p < parts; p++) {
    total += at_hand[p * D + local];
    weight += at_hand[SIZE + p];
  }
  let to = split * count * HEADS;
  for (var j = 0u; j < PAIRS; j++) {
    let whose = first_pair + j;
    if (whose >= pairs) { break; }
    let at = to + (whose / GROUP) * HEADS + kv_head * GROUP + whose % GROUP;
    out[at * D + local] = select(0.0, total[j] / weight[j], weight[j] > 0.0);
    if (local == 0u) { stats[at] = vec2f(largest[j], weight[j]); }
  }
}
`,
};

export const ATTEND_MANY: ShaderFile = {
  name: "backend/attend_many.wgsl",
  text: `// Attention of many queries over stored rows, as of a chunk: parameters as of \`attend\` in attention.wgsl.
//
// One workgroup takes 64 (query, query head) pairs of one KV head, so that heads of a group share what is loaded, and runs
// over rows in steps of 64. In a step: 1. scores, 4 by 4 an invocation, 32 numbers of queries and keys at a time through
// workgroup memory; 2. the softmax so far; 3. what the values add, for each of its four pairs 4 numbers of 64.
//
// D is 64 or 128. Loops over what an invocation holds are written out: see multiply.wgsl.

override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8. */
override KIND: u32 = 0u;
/** Query heads, and how many share a KV head. */
override HEADS: u32 = 1u;
override GROUP: u32 = 1u;

const ROWS = 64u;
const PAIRS = 64u;
/** Quads of a row that are at hand. */
const DEPTH = 8u;
/** Where those of the keys begin. */
const KEYS = 512u;
/** Below every score. */
const LOWEST = -3.4e38;
const UNMASKED = 0xffffffffu;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> queries: array<vec4f>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> stats: array<vec2f>;
@group(0) @binding(7) var<storage, read> biases: array<f32>;

/**
 * 1. queries, [DEPTH, PAIRS], and keys, [DEPTH, ROWS]; 2. the largest score that each invocation has, of its pairs;
 * 3. exp(score - largest), [16 quads of rows 16 apart, PAIRS].
 */
var<workgroup> at_hand: array<vec4f, 1024>;

fn stride() -> u32 {
  if (KIND == 0u) { return D; }
  return select(D / 4u + 1u, D / 2u, KIND == 1u);
}

fn seen_by(t: u32, count: u32, length: u32, reach: u32) -> u32 {
  if (reach == UNMASKED) { return length; }
  return length - count + t + 1u;
}

fn bias_of(i: u32, table: u32) -> f32 {
  if (i >= params[table + 3u]) { return 0.0; }
  return biases[params[table + 2u] + i];
}

fn bytes(word: u32) -> vec4f {
  return vec4f((vec4i(vec4u(word) << vec4u(24u, 16u, 8u, 0u))) >> vec4u(24u));
}

/** Numbers 4q ... 4q + 3 of the key at a word. */
fn key(at: u32, q: u32) -> vec4f {
  if (KIND == 0u) {
    let i = at + 4u * q;
    return bitcast<vec4f>(vec4u(keys[i], keys[i + 1u], keys[i + 2u], keys[i + 3u]));
  }
  if (KIND == 1u) { return vec4f(unpack2x16float(keys[at + 2u * q]), unpack2x16float(keys[at + 2u * q + 1u])); }
  return bytes(keys[at + 1u + q]) * bitcast<f32>(keys[at]);
}

/** Four numbers of the value at a word, those that invocation n of 16 holds of the 64 from \`first\` on: see \`column\`. */
fn value(at: u32, first: u32, n: u32) -> vec4f {
  if (KIND == 0u) {
    let i = at + first + n;
    return bitcast<vec4f>(vec4u(values[i], values[i + 16u], values[i + 32u], values[i + 48u]));
  }
  if (KIND == 1u) {
    let i = at + first / 2u + n;
    return vec4f(unpack2x16float(values[i]), unpack2x16float(values[i + 16u]));
  }
  return bytes(values[at + 1u + first / 4u + n]) * bitcast<f32>(values[at]);
}

/** Which number of 64 the j-th of invocation n is: neighbours load neighbours. */
fn column(n: u32, j: u32) -> u32 {
  if (KIND == 0u) { return n + 16u * j; }
  if (KIND == 1u) { return 2u * n + (j & 1u) + 32u * (j >> 1u); }
  return 4u * n + j;
}

/** Four scores, and what a quad of a query adds to them with those of four keys. */
fn more(sums: vec4f, x: vec4f, k: mat4x4f) -> vec4f {
  return sums + x.x * k[0] + x.y * k[1] + x.z * k[2] + x.w * k[3];
}

/** Scores of query t with rows row, row + 16, row + 32 and row + 48, as far as it sees them. */
fn seen_scores(products: vec4f, pair: u32, row: u32, end: u32, reach: u32, table: u32) -> vec4f {
  let count = params[0];
  let seen = seen_by(pair / GROUP, count, params[table + 1u], reach);
  let i = vec4u(row) + vec4u(0u, 16u, 32u, 48u);
  var visible = (i < vec4u(min(seen, end))) & vec4<bool>(pair < count * GROUP);
  if (reach != 0u && reach != UNMASKED) { visible = visible & (i + vec4u(reach) >= vec4u(seen)); }
  let bias = vec4f(bias_of(i.x, table), bias_of(i.y, table), bias_of(i.z, table), bias_of(i.w, table));
  return select(vec4f(LOWEST), products / sqrt(f32(D)) + bias, visible);
}

fn largest_of(s: vec4f) -> f32 {
  return max(max(s.x, s.y), max(s.z, s.w));
}

fn weights(s: vec4f, most: f32) -> vec4f {
  return select(vec4f(), exp(s - most), s > vec4f(LOWEST));
}

fn total(s: vec4f) -> f32 {
  return (s.x + s.y) + (s.z + s.w);
}

/** Four numbers of the output so far, and what four rows of values add to them. */
fn with_values(sums: vec4f, p: vec4f, v0: vec4f, v1: vec4f, v2: vec4f, v3: vec4f) -> vec4f {
  return sums + p.x * v0 + p.y * v1 + p.z * v2 + p.w * v3;
}

fn load_quads(local: u32, depth: u32, kv_head: u32, first_pair: u32, first_word: u32, row: u32, end: u32) {
  let q = depth + local % DEPTH;
  let to = (local % DEPTH) * ROWS + local / DEPTH;
  let pairs = params[0] * GROUP;
  let pair = min(first_pair + local / DEPTH, pairs - 1u);
  let far = min(first_pair + local / DEPTH + 32u, pairs - 1u);
  at_hand[to] = queries[((pair / GROUP) * HEADS + kv_head * GROUP + pair % GROUP) * (D / 4u) + q];
  at_hand[to + 32u] = queries[((far / GROUP) * HEADS + kv_head * GROUP + far % GROUP) * (D / 4u) + q];
  // Rows beyond the end get no weight: the last one stands for them.
  let r = min(row + local / DEPTH, end - 1u);
  at_hand[KEYS + to] = key(first_word + r * stride(), q);
  at_hand[KEYS + to + 32u] = key(first_word + min(r + 32u, end - 1u) * stride(), q);
}

fn put(whose: u32, sums: vec4f, first: u32, n: u32) {
  out[whose * D + first + column(n, 0u)] = sums.x;
  out[whose * D + first + column(n, 1u)] = sums.y;
  out[whose * D + first + column(n, 2u)] = sums.z;
  out[whose * D + first + column(n, 3u)] = sums.w;
}

/** Writes what a pair came to; \`weight\` is the sum of all its weights. */
fn finish(pair: u32, kv_head: u32, split: u32, n: u32, near: vec4f, far: vec4f, most: f32, weight: f32) {
  if (pair >= params[0] * GROUP) { return; }
  let whose = split * params[0] * HEADS + (pair / GROUP) * HEADS + kv_head * GROUP + pair % GROUP;
  let factor = select(0.0, 1.0 / weight, weight > 0.0);
  put(whose, near * factor, 0u, n);
  if (D > 64u) { put(whose, far * factor, 64u, n); }
  if (n == 0u) { stats[whose] = vec2f(most, weight); }
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let count = params[0];
  let kv_head = params[1] + group.y;
  let reach = params[3];
  let table = 5u + 4u * group.y;
  let split = params[4] + group.z;
  let first_word = params[table];
  let length = params[table + 1u];
  let pairs = count * GROUP;
  let first_pair = group.x * PAIRS;
  let last_query = (min(first_pair + PAIRS, pairs) - 1u) / GROUP;
  let end = min(seen_by(last_query, count, length, reach), (split + 1u) * params[2]);
  var start = split * params[2];
  let first_seen = seen_by(first_pair / GROUP, count, length, reach);
  if (reach > 0u && first_seen > reach) { start = max(start, (first_seen - reach) / ROWS * ROWS); }

  // This invocation's pairs are p, p + 16, p + 32, p + 48; its rows in a step n, n + 16, n + 32, n + 48.
  let n = local % 16u;
  let p = local / 16u;
  let pair = first_pair + p;
  // Largest scores so far, sums of weights, and outputs: numbers of the first 64, and of the others.
  var most = vec4f(LOWEST);
  var all = vec4f();
  var a0 = vec4f();
  var a1 = vec4f();
  var a2 = vec4f();
  var a3 = vec4f();
  var b0 = vec4f();
  var b1 = vec4f();
  var b2 = vec4f();
  var b3 = vec4f();

  for (var row = start; row < end; row += ROWS) {
    var s0 = vec4f();
    var s1 = vec4f();
    var s2 = vec4f();
    var s3 = vec4f();
    for (var depth = 0u; depth < D / 4u; depth += DEPTH) {
      workgroupBarrier();
      load_quads(local, depth, kv_head, first_pair, first_word, row, end);
      workgroupBarrier();
      for (var q = 0u; q < DEPTH; q++) {
        let x = q * PAIRS + p;
        let k = KEYS + q * ROWS + n;
        let four = transpose(mat4x4f(at_hand[k], at_hand[k + 16u], at_hand[k + 32u], at_hand[k + 48u]));
        s0 = more(s0, at_hand[x], four);
        s1 = more(s1, at_hand[x + 16u], four);
        s2 = more(s2, at_hand[x + 32u], four);
        s3 = more(s3, at_hand[x + 48u], four);
      }
    }
    s0 = seen_scores(s0, pair, row + n, end, reach, table);
    s1 = seen_scores(s1, pair + 16u, row + n, end, reach, table);
    s2 = seen_scores(s2, pair + 32u, row + n, end, reach, table);
    s3 = seen_scores(s3, pair + 48u, row + n, end, reach, table);
    workgroupBarrier();
    at_hand[local] = vec4f(largest_of(s0), largest_of(s1), largest_of(s2), largest_of(s3));
    workgroupBarrier();
    var now = most;
    for (var i = 0u; i < 16u; i += 4u) {
      let at = p * 16u + i;
      now = max(now, max(max(at_hand[at], at_hand[at + 1u]), max(at_hand[at + 2u], at_hand[at + 3u])));
    }
    let fade = select(vec4f(), exp(most - now), most > vec4f(LOWEST));
    most = now;
    s0 = weights(s0, now.x);
    s1 = weights(s1, now.y);
    s2 = weights(s2, now.z);
    s3 = weights(s3, now.w);
    all = all * fade + vec4f(total(s0), total(s1), total(s2), total(s3));
    workgroupBarrier();
    let to = n * PAIRS + p;
    at_hand[to] = s0;
    at_hand[to + 16u] = s1;
    at_hand[to + 32u] = s2;
    at_hand[to + 48u] = s3;
    workgroupBarrier();
    a0 *= fade.x;
    a1 *= fade.y;
    a2 *= fade.z;
    a3 *= fade.w;
    b0 *= fade.x;
    b1 *= fade.y;
    b2 *= fade.z;
    b3 *= fade.w;
    let last = end - 1u;
    for (var r = 0u; r < 16u; r++) {
      let p0 = at_hand[r * PAIRS + p];
      let p1 = at_hand[r * PAIRS + p + 16u];
      let p2 = at_hand[r * PAIRS + p + 32u];
      let p3 = at_hand[r * PAIRS + p + 48u];
      let w0 = first_word + min(row + r, last) * stride();
      let w1 = first_word + min(row + r + 16u, last) * stride();
      let w2 = first_word + min(row + r + 32u, last) * stride();
      let w3 = first_word + min(row + r + 48u, last) * stride();
      let v0 = value(w0, 0u, n);
      let v1 = value(w1, 0u, n);
      let v2 = value(w2, 0u, n);
      let v3 = value(w3, 0u, n);
      a0 = with_values(a0, p0, v0, v1, v2, v3);
      a1 = with_values(a1, p1, v0, v1, v2, v3);
      a2 = with_values(a2, p2, v0, v1, v2, v3);
      a3 = with_values(a3, p3, v0, v1, v2, v3);
      if (D > 64u) {
        let u0 = value(w0, 64u, n);
        let u1 = value(w1, 64u, n);
        let u2 = value(w2, 64u, n);
        let u3 = value(w3, 64u, n);
        b0 = with_values(b0, p0, u0, u1, u2, u3);
        b1 = with_values(b1, p1, u0, u1, u2, u3);
        b2 = with_values(b2, p2, u0, u1, u2, u3);
        b3 = with_values(b3, p3, u0, u1, u2, u3);
      }
    }
  }

  workgroupBarrier();
  at_hand[local] = all;
  workgroupBarrier();
  var weight = vec4f();
  for (var i = 0u; i < 16u; i++) { weight += at_hand[p * 16u + i]; }
  finish(pair, kv_head, split, n, a0, b0, most.x, weight.x);
  finish(pair + 16u, kv_head, split, n, a1, b1, most.y, weight.y);
  finish(pair + 32u, kv_head, split, n, a2, b2, most.z, weight.z);
  finish(pair + 48u, kv_head, split, n, a3, b3, most.w, weight.w);
}
`,
};

export const ATTENTION: ShaderFile = {
  name: "backend/attention.wgsl",
  text: `// Attention over stored rows, and its scores alone.
//
//   attend: out[t, head] = sum over rows i of softmax(q[t, head] . k[i] / sqrt(D) + bias[i])[i] * v[i]
//   scores: scratch[r, i] = q . k[i] / sqrt(D) + bias[i] for a run of heads and queries
//
// Query t of \`count\` sees the last \`reach\` rows (0: all) up to length - count + t of its head, or every row (UNMASKED);
// heads may differ in length. The first rows of a head may have a bias.
// Shapes: queries [count, HEADS, D]; keys and values as store.wgsl lays them.
//
// One workgroup takes TILE (query, query head) pairs of one KV head, so that heads of a group share what is loaded, and
// runs over rows in steps of 64. In a step: 1. the scores of its pairs, 16 numbers of the rows at a time, through
// workgroup memory; 2. their softmax so far (largest m, sum l); 3. what the rows' values add, each invocation holding up
// to 16 numbers of the output. Workgroups of a head's other rows (\`splits\`) are brought together by merge.wgsl.

override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8. */
override KIND: u32 = 0u;
/** Query heads, and how many share a KV head. */
override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
/** Pairs of a workgroup, 1 to 16. */
override TILE: u32 = 16u;

const SIZE = 256u;
const ROWS = 64u;
const DEPTH = 16u;
/** Below every score. */
const LOWEST = -3.4e38;
/** \`reach\` where every query sees every row. */
const UNMASKED = 0xffffffffu;

/**
 * attend: count, first KV head, rows a split (a multiple of 64), reach, first split of the dispatch, then for each of its KV
 *   heads the word where row 0 would lie, its rows, its first bias and how many of its rows have one.
 * scores: first query head, first query, queries, pitch, first row of the dispatch, the row behind its last, then the same
 *   for each KV head that the run touches.
 * A large head has several buffers. Rows count from the head's start whatever the buffer: words count modulo 2^32.
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> queries: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
/** [splits, count, HEADS, D] */
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
/** Largest score and sum of exp(score - largest), [splits, count, HEADS] */
@group(0) @binding(5) var<storage, read_write> stats: array<vec2f>;
/** [heads * queries of the run, pitch] */
@group(0) @binding(6) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(7) var<storage, read> biases: array<f32>;

var<workgroup> key_tile: array<f32, 1024>;
var<workgroup> query_tile: array<f32, 256>;
var<workgroup> score: array<f32, 1024>;
var<workgroup> partial: array<f32, 256>;
var<workgroup> largest: array<f32, 16>;
var<workgroup> sums: array<f32, 16>;
var<workgroup> fade: array<f32, 16>;

fn stride() -> u32 {
  if (KIND == 0u) { return D; }
  return select((D + 3u) / 4u + 1u, (D + 1u) / 2u, KIND == 1u);
}

/** Rows up to the last that query t sees. */
fn seen_by(t: u32, count: u32, length: u32, reach: u32) -> u32 {
  if (reach == UNMASKED) { return length; }
  return length - count + t + 1u;
}

/** What is added to the score of row i of the head at \`table\`. */
fn bias_of(i: u32, table: u32) -> f32 {
  if (i >= params[table + 3u]) { return 0.0; }
  return biases[params[table + 2u] + i];
}

fn key(at: u32, d: u32) -> f32 {
  if (KIND == 0u) { return bitcast<f32>(keys[at + d]); }
  if (KIND == 1u) { return unpack2x16float(keys[at + d / 2u])[d & 1u]; }
  let whole = extractBits(bitcast<i32>(keys[at + 1u + d / 4u]), 8u * (d & 3u), 8u);
  return f32(whole) * bitcast<f32>(keys[at]);
}

fn value(at: u32, d: u32) -> f32 {
  if (KIND == 0u) { return bitcast<f32>(values[at + d]); }
  if (KIND == 1u) { return unpack2x16float(values[at + d / 2u])[d & 1u]; }
  let whole = extractBits(bitcast<i32>(values[at + 1u + d / 4u]), 8u * (d & 3u), 8u);
  return f32(whole) * bitcast<f32>(values[at]);
}

/** Rows \`row ... row + ROWS - 1\`, numbers \`depth ... depth + DEPTH - 1\` of them, those beyond \`end\` 0. */
fn load_keys(first_word: u32, row: u32, end: u32, depth: u32, local: u32) {
  for (var i = local; i < ROWS * DEPTH; i += SIZE) {
    let r = row + i / DEPTH;
    let d = depth + i % DEPTH;
    var x = 0.0;
    if (r < end && d < D) { x = key(first_word + r * stride(), d); }
    key_tile[(i % DEPTH) * ROWS + i / DEPTH] = x;
  }
}

/** Adds what this step of the depth gives to the four scores of an invocation: pairs local / 64 + 4j, row local % 64. */
fn add_products(so_far: vec4f, local: u32) -> vec4f {
  var sum = so_far;
  let row = local % ROWS;
  let pair = local / ROWS;
  for (var d = 0u; d < DEPTH; d++) {
    let x = key_tile[d * ROWS + row];
    sum += x * vec4f(
      query_tile[pair * DEPTH + d],
      query_tile[(pair + 4u) * DEPTH + d],
      query_tile[(pair + 8u) * DEPTH + d],
      query_tile[(pair + 12u) * DEPTH + d],
    );
  }
  return sum;
}

@compute @workgroup_size(256)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let count = params[0];
  let kv_head = params[1] + group.y;
  let reach = params[3];
  let table = 5u + 4u * group.y;
  let split = params[4] + group.z;
  let first_word = params[table];
  let length = params[table + 1u];
  let pairs = count * GROUP;
  let first_pair = group.x * TILE;
  let last_query = (min(first_pair + TILE, pairs) - 1u) / GROUP;
  let end = min(seen_by(last_query, count, length, reach), (split + 1u) * params[2]);
  var start = split * params[2];
  let first_seen = seen_by(first_pair / GROUP, count, length, reach);
  if (reach > 0u && first_seen > reach) { start = max(start, (first_seen - reach) / ROWS * ROWS); }

  // What of the output this invocation holds: pairs lane_pair + i * lane_pairs, numbers lane_d + j * lanes.
  let lanes = min(D, SIZE);
  let lane_pairs = SIZE / lanes;
  let depths = (D + lanes - 1u) / lanes;
  let lane_pair = local / lanes;
  let lane_d = local % lanes;
  let holds = lane_pair < lane_pairs;
  var sum: array<f32, 16>;
  for (var i = 0u; i < 16u; i++) { sum[i] = 0.0; }
  if (local < 16u) {
    largest[local] = LOWEST;
    sums[local] = 0.0;
  }

  for (var row = start; row < end; row += ROWS) {
    var dots = vec4f();
    for (var depth = 0u; depth < D; depth += DEPTH) {
      workgroupBarrier();
      load_keys(first_word, row, end, depth, local);
      let pair = first_pair + local / DEPTH;
      let d = depth + local % DEPTH;
      var q = 0.0;
      if (pair < pairs && local / DEPTH < TILE && d < D) {
        q = queries[((pair / GROUP) * HEADS + kv_head * GROUP + pair % GROUP) * D + d];
      }
      query_tile[local] = q;
      workgroupBarrier();
      dots = add_products(dots, local);
    }
    for (var j = 0u; j < 4u; j++) {
      let pair = first_pair + local / ROWS + 4u * j;
      let i = row + local % ROWS;
      let seen = seen_by(pair / GROUP, count, length, reach);
      let visible = i < seen && i < end && (reach == 0u || reach == UNMASKED || i + reach >= seen);
      score[(local / ROWS + 4u * j) * ROWS + local % ROWS] =
        select(LOWEST, dots[j] / sqrt(f32(D)) + bias_of(i, table), visible);
    }
    workgroupBarrier();

    // Softmax so far: sixteen invocations a pair.
    let mine = local / 16u;
    var most = LOWEST;
    for (var i = local % 16u; i < ROWS; i += 16u) { most = max(most, score[mine * ROWS + i]); }
    partial[local] = most;
    workgroupBarrier();
    most = largest[mine];
    for (var i = 0u; i < 16u; i++) { most = max(most, partial[mine * 16u + i]); }
    var part = 0.0;
    for (var i = local % 16u; i < ROWS; i += 16u) {
      let s = score[mine * ROWS + i];
      let p = select(0.0, exp(s - most), s > LOWEST);
      score[mine * ROWS + i] = p;
      part += p;
    }
    workgroupBarrier();
    partial[local] = part;
    workgroupBarrier();
    if (local % 16u == 0u) {
      let faded = select(0.0, exp(largest[mine] - most), largest[mine] > LOWEST);
      var all = sums[mine] * faded;
      for (var i = 0u; i < 16u; i++) { all += partial[mine * 16u + i]; }
      sums[mine] = all;
      largest[mine] = most;
      fade[mine] = faded;
    }
    workgroupBarrier();

    if (holds) {
      let rows = min(ROWS, end - row);
      for (var j = 0u; j < depths; j++) {
        let d = lane_d + j * lanes;
        if (d >= D) { break; }
        for (var i = 0u; lane_pair + i * lane_pairs < TILE; i++) { sum[i * depths + j] *= fade[lane_pair + i * lane_pairs]; }
        for (var r = 0u; r < rows; r++) {
          let v = value(first_word + (row + r) * stride(), d);
          for (var i = 0u; lane_pair + i * lane_pairs < TILE; i++) {
            sum[i * depths + j] += score[(lane_pair + i * lane_pairs) * ROWS + r] * v;
          }
        }
      }
    }
  }
  workgroupBarrier();

  let to = split * count * HEADS;
  if (local < TILE && first_pair + local < pairs) {
    let pair = first_pair + local;
    stats[to + (pair / GROUP) * HEADS + kv_head * GROUP + pair % GROUP] = vec2f(largest[local], sums[local]);
  }
  if (!holds) { return; }
  for (var i = 0u; lane_pair + i * lane_pairs < TILE; i++) {
    let pair = first_pair + lane_pair + i * lane_pairs;
    if (pair >= pairs) { break; }
    let at = (to + (pair / GROUP) * HEADS + kv_head * GROUP + pair % GROUP) * D;
    let total = sums[lane_pair + i * lane_pairs];
    for (var j = 0u; j < depths; j++) {
      let d = lane_d + j * lanes;
      if (d < D) { out[at + d] = select(0.0, sum[i * depths + j] / total, total > 0.0); }
    }
  }
}

/** Group (rows / 64, queries / 16, heads of the run). */
@compute @workgroup_size(256)
fn scores(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let head = params[0] + group.z;
  let queried = params[2];
  let pitch = params[3];
  let table = 6u + 4u * (head / GROUP - params[0] / GROUP);
  let first_word = params[table];
  let length = min(params[table + 1u], params[5]);
  let row = params[4] + group.x * ROWS;
  if (row >= length) { return; }
  var dots = vec4f();
  for (var depth = 0u; depth < D; depth += DEPTH) {
    workgroupBarrier();
    load_keys(first_word, row, length, depth, local);
    let t = group.y * 16u + local / DEPTH;
    let d = depth + local % DEPTH;
    var q = 0.0;
    if (t < queried && d < D) { q = queries[((params[1] + t) * HEADS + head) * D + d]; }
    query_tile[local] = q;
    workgroupBarrier();
    dots = add_products(dots, local);
  }
  let i = row + local % ROWS;
  if (i >= length) { return; }
  let bias = bias_of(i, table);
  for (var j = 0u; j < 4u; j++) {
    let t = group.y * 16u + local / ROWS + 4u * j;
    if (t < queried) { scratch[(group.z * queried + t) * pitch + i] = dots[j] / sqrt(f32(D)) + bias; }
  }
}
`,
};

export const COLUMNS: ShaderFile = {
  name: "backend/columns.wgsl",
  text: `// Brings rows of attention together, column by column.
//
//   window:  mean, pooledMean, pooledMax and variance over a group's query heads and queries, [planes, kvHeads, prefix]
//   reduce:  sum and maximum over queries, [2, heads, pitch]
//
// A run of query heads and queries is at hand; planes hold what runs before gave. One invocation takes one column of one
// KV head (window) or query head (reduce) and walks over its rows: head by head, query by query.
// Planes of window: 0 mean's sum, 1 pooledMean's sum, 2 pooledMax, 3 variance's sum, 4 and 5 Welford's mean and squares.

/** Query heads that share a KV head. */
override GROUP: u32 = 1u;

/**
 * first query head, query heads, first query, queries, pitch, prefix, all queries, KV heads (window) or heads (reduce),
 * first measure, kernel (window) or whether queries are weighed (reduce)
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
/** [query heads * queries of the run, pitch] */
@group(0) @binding(1) var<storage, read> attention: array<f32>;
/** Of rows (window); the weights of all queries, four by four (reduce). */
@group(0) @binding(2) var<storage, read> measures: array<vec4f>;
@group(0) @binding(3) var<storage, read_write> planes: array<f32>;

@compute @workgroup_size(64)
fn window(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let prefix = params[5];
  let i = group.x * 64u + local;
  if (i >= prefix) { return; }
  let kv_head = params[0] / GROUP + group.y;
  let plane = params[7] * prefix;
  let at = kv_head * prefix + i;
  var mean = planes[at];
  var pooled_mean = planes[plane + at];
  var pooled_max = planes[2u * plane + at];
  var variance = planes[3u * plane + at];
  var running = planes[4u * plane + at];
  var squares = planes[5u * plane + at];
  let reach = params[9] / 2u;
  let first = i - min(i, reach);
  let last = min(i + reach, prefix - 1u);
  let queries = params[3];
  let begin = max(kv_head * GROUP, params[0]);
  let end = min((kv_head + 1u) * GROUP, params[0] + params[1]);
  for (var head = begin; head < end; head++) {
    for (var t = 0u; t < queries; t++) {
      let r = (head - params[0]) * queries + t;
      let p = attention[r * params[4] + i];
      mean += p;
      let seen = params[2] + t;
      if (seen == 0u) {
        running = 0.0;
        squares = 0.0;
      }
      let off = p - running;
      running += off / f32(seen + 1u);
      squares += off * (p - running);
      if (seen + 1u == params[6] && seen > 0u) { variance += squares / f32(seen); }
      var pooled = 0.0;
      for (var j = first; j <= last; j++) { pooled += attention[r * params[4] + j]; }
      let importance = pooled / f32(params[9]) * measures[params[8] + r].z;
      pooled_mean += importance;
      pooled_max = max(pooled_max, importance);
    }
  }
  planes[at] = mean;
  planes[plane + at] = pooled_mean;
  planes[2u * plane + at] = pooled_max;
  planes[3u * plane + at] = variance;
  planes[4u * plane + at] = running;
  planes[5u * plane + at] = squares;
}

@compute @workgroup_size(64)
fn reduce(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let pitch = params[4];
  let i = group.x * 64u + local;
  if (i >= pitch) { return; }
  let head = params[0] + group.y;
  let plane = params[7] * pitch;
  let at = head * pitch + i;
  var sum = planes[at];
  var most = planes[plane + at];
  for (var t = 0u; t < params[3]; t++) {
    var p = attention[(group.y * params[3] + t) * pitch + i];
    if (params[9] != 0u) {
      let query = params[2] + t;
      p *= measures[query / 4u][query % 4u];
    }
    sum += p;
    most = max(most, p);
  }
  planes[at] = sum;
  planes[plane + at] = most;
}
`,
};

export const CONVOLVE: ShaderFile = {
  name: "backend/convolve.wgsl",
  text: `// A layer's short convolution over its last rows, channel by channel (model/decode/convolution.ts):
//   out[t, c] = queries[t, c] · Σ_j taps[c, j] · row[length − count + t − TAPS + 1 + j, c], before the first row zeros
// Channel c of query head 2g is in the keys of KV head g, of head 2g + 1 in its values; rows are float32, D numbers each.
//
//   params   count, first query, first KV head, KV heads, first row of the dispatch, the row behind its last; then of each KV
//            head the word where row 0 would lie (modulo 2^32), and its length
//   queries  (count, CHANNELS)      taps  (CHANNELS, TAPS)      out  (count, CHANNELS)
//
// What rows of a head's later buffers give is added to what those before gave.
// A thread gives one number: group.x is 64 channels of these KV heads, group.y a query.

override D: u32 = 1u;
override TAPS: u32 = 1u;
// Of all KV heads.
override CHANNELS: u32 = 2u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> queries: array<f32>;
@group(0) @binding(2) var<storage, read> keys: array<f32>;
@group(0) @binding(3) var<storage, read> values: array<f32>;
@group(0) @binding(4) var<storage, read> taps: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let count = params[0];
  let t = params[1] + id.y;
  let head = id.x / (2u * D);
  if (head >= params[3] || t >= count) {
    return;
  }
  let d = id.x % D;
  let is_second = (id.x / D) % 2u == 1u;
  let word = params[6u + 2u * head] + d;
  // Rows up to the query's own: taps before the first of them weigh nothing.
  let seen = params[7u + 2u * head] - count + t + 1u;
  let channel = params[2] * 2u * D + id.x;
  var sum = 0.0;
  for (var j = TAPS - min(TAPS, seen); j < TAPS; j++) {
    let row = seen + j - TAPS;
    if (row < params[4] || row >= params[5]) {
      continue;
    }
    let at = word + row * D;
    let x = select(keys[at], values[at], is_second);
    sum += taps[channel * TAPS + j] * x;
  }
  let at = t * CHANNELS + channel;
  var before = 0.0;
  if (params[4] > 0u) {
    before = out[at];
  }
  out[at] = before + sum * queries[at];
}
`,
};

export const GATE: ShaderFile = {
  name: "backend/gate.wgsl",
  text: `// Scores of a linear gate: scores[t, g] = weights[g] . x[t] / sqrt(mean x[t]^2 + epsilon) + bias[g]
//
// Shapes: hidden [count, width], weights [heads, width], bias [heads], scores [count, heads].
// One workgroup gives one score, group (g, t); its 64 invocations take every 64th number.

// subgroups: enable subgroups;

/** count, width, heads, epsilon (a float's bits), first token */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

const SIZE = 64u;
var<workgroup> parts: array<vec2f, 64>;
/** Invocations whose numbers are brought together before workgroup memory is used. */
var<private> width: u32 = 1u;

fn sum_of_parts(local: u32) -> vec2f {
  for (var half = SIZE / 2u; half > 0u; half /= 2u) {
    if (local < half) { parts[local] += parts[local + half]; }
    workgroupBarrier();
  }
  return parts[0];
}

fn sum_of_few() -> vec2f {
  var sum = vec2f();
  for (var i = 0u; i < SIZE / width; i++) { sum += parts[i]; }
  return sum;
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) local: u32,
  // subgroups: @builtin(subgroup_size) subgroup_width: u32,
) {
  // subgroups: width = min(SIZE, subgroup_width);
  let t = params[4] + group.y;
  let inner = params[1];
  if (t >= params[0]) { return; }
  var sums = vec2f();
  for (var i = local; i < inner; i += SIZE) {
    let x = hidden[t * inner + i];
    sums += vec2f(x * x, x * weights[group.x * inner + i]);
  }
  let part = sums; // subgroups: let part = subgroupAdd(sums);
  if (local % width == 0u) { parts[local / width] = part; }
  workgroupBarrier();
  let all = sum_of_parts(local); // subgroups: let all = sum_of_few();
  if (local == 0u) {
    let scale = 1.0 / sqrt(all.x / f32(inner) + bitcast<f32>(params[3]));
    scores[t * params[2] + group.x] = all.y * scale + bias[group.x];
  }
}
`,
};

export const MERGE: ShaderFile = {
  name: "backend/merge.wgsl",
  text: `// Brings the parts of attention over splits of the rows together.
//
//   M = max m_s;  w_s = l_s exp(m_s - M);  out = sum w_s out_s / sum w_s;  stats = (M, sum w_s)
//
// With a logit for nothing (HAS_NULLS) M is at least that, and the sum below has exp(null - M) more.
//
// Shapes: parts [splits, rows, D], part_stats [splits, rows]; rows = count * heads; at most 256 splits;
// nulls [HEADS].
// One workgroup gives one row.

override D: u32 = 64u;
/** Query heads. */
override HEADS: u32 = 1u;
override HAS_NULLS: bool = false;

const SIZE = 64u;
const SPLITS = 256u;

/** rows, splits */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read> part_stats: array<vec2f>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2f>;
@group(0) @binding(5) var<storage, read> nulls: array<f32>;

var<workgroup> weights: array<f32, SPLITS>;
var<workgroup> largest: array<f32, SIZE>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let row = group.y * groups.x + group.x;
  let rows = params[0];
  let splits = params[1];
  if (row >= rows) { return; }
  var most = -3.4e38;
  if (HAS_NULLS) { most = nulls[row % HEADS]; }
  for (var s = local; s < splits; s += SIZE) {
    let part = part_stats[s * rows + row];
    if (part.y > 0.0) { most = max(most, part.x); }
  }
  largest[local] = most;
  workgroupBarrier();
  if (local < 8u) {
    for (var i = local; i < SIZE; i += 8u) { most = max(most, largest[i]); }
    largest[local] = most;
  }
  workgroupBarrier();
  most = max(max(max(largest[0], largest[1]), max(largest[2], largest[3])),
    max(max(largest[4], largest[5]), max(largest[6], largest[7])));
  // Those beyond the last weigh nothing.
  for (var s = local; s < SPLITS; s += SIZE) {
    var weight = 0.0;
    if (s < splits) {
      let part = part_stats[s * rows + row];
      if (part.y > 0.0) { weight = part.y * exp(part.x - most); }
    }
    weights[s] = weight;
  }
  workgroupBarrier();
  var nothing = 0.0;
  if (HAS_NULLS) { nothing = exp(nulls[row % HEADS] - most); }
  let last = splits - 1u;
  for (var d = local; d < D; d += SIZE) {
    var sum = 0.0;
    var all = nothing;
    for (var s = 0u; s < splits; s += 4u) {
      let w = vec4f(weights[s], weights[s + 1u], weights[s + 2u], weights[s + 3u]);
      let a = parts[(s * rows + row) * D + d];
      let b = parts[(min(s + 1u, last) * rows + row) * D + d];
      let c = parts[(min(s + 2u, last) * rows + row) * D + d];
      let e = parts[(min(s + 3u, last) * rows + row) * D + d];
      sum += dot(w, vec4f(a, b, c, e));
      all += (w.x + w.y) + (w.z + w.w);
    }
    out[row * D + d] = sum / all;
    if (d == 0u) { stats[row] = vec2f(most, all); }
  }
}
`,
};

export const NORMS: ShaderFile = {
  name: "backend/norms.wgsl",
  text: `// How far a value moves the output: norms of its way through the output projection.
//
//   norms[h, i] = mean over the group's query heads g of || v[h, i] . Wo_g ||, l1 or l2
//
// Shapes: values as store.wgsl lays them, wo [width, HEADS * D], y = x wo^T, norms [KV heads, rows].
// One workgroup takes 64 rows of one KV head and walks over the outputs, 64 at a time, 32 numbers of both at a time through
// workgroup memory; an invocation has 4 by 4 products, 16 apart. Loops over what it holds are written out: see multiply.wgsl.

override D: u32 = 64u;
override KIND: u32 = 0u;
override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
/** 1 or 2. */
override NORM: u32 = 1u;

const SIDE = 64u;
/** Quads of a row that are at hand. */
const DEPTH = 8u;
/** Where those of the weights begin. */
const WEIGHTS = 512u;

/**
 * width, rows, first KV head, its first column of wo, first row of the dispatch, the row behind its last, then for each KV
 * head of the dispatch the word where row 0 would lie (modulo 2^32)
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> wo: array<f32>;
@group(0) @binding(3) var<storage, read_write> norms: array<f32>;

/** Values, [DEPTH, SIDE], and weights, [DEPTH, SIDE]; at the end each invocation's sums of its four rows. */
var<workgroup> at_hand: array<vec4f, 1024>;

fn stride() -> u32 {
  if (KIND == 0u) { return D; }
  return select((D + 3u) / 4u + 1u, (D + 1u) / 2u, KIND == 1u);
}

fn value(at: u32, d: u32) -> f32 {
  if (KIND == 0u) { return bitcast<f32>(values[at + d]); }
  if (KIND == 1u) { return unpack2x16float(values[at + d / 2u])[d & 1u]; }
  let whole = extractBits(bitcast<i32>(values[at + 1u + d / 4u]), 8u * (d & 3u), 8u);
  return f32(whole) * bitcast<f32>(values[at]);
}

fn value_or_zero(at: u32, d: u32) -> f32 {
  if (d >= D) { return 0.0; }
  return value(at, d);
}

fn weight_or_zero(at: u32, d: u32) -> f32 {
  if (d >= D) { return 0.0; }
  return wo[at + d];
}

/** Four products, and what a quad of a row adds to them with those of four outputs. */
fn more(sums: vec4f, x: vec4f, w: mat4x4f) -> vec4f {
  return sums + x.x * w[0] + x.y * w[1] + x.z * w[2] + x.w * w[3];
}

/** What four outputs add to the norm; those beyond the last are 0. */
fn sizes(products: vec4f) -> f32 {
  var all = products * products;
  if (NORM == 1u) { all = abs(products); }
  return (all.x + all.y) + (all.z + all.w);
}

/** Brings quad \`local % DEPTH\` behind \`depth\` of a row and of an output. */
fn load_quads(local: u32, half: u32, depth: u32, at_value: u32, at_weight: u32, is_output: bool) {
  let d = (depth + local % DEPTH) * 4u;
  let to = (local % DEPTH) * SIDE + local / DEPTH + half;
  at_hand[to] = vec4f(
    value_or_zero(at_value, d),
    value_or_zero(at_value, d + 1u),
    value_or_zero(at_value, d + 2u),
    value_or_zero(at_value, d + 3u),
  );
  var w = vec4f();
  if (is_output) {
    w = vec4f(
      weight_or_zero(at_weight, d),
      weight_or_zero(at_weight, d + 1u),
      weight_or_zero(at_weight, d + 2u),
      weight_or_zero(at_weight, d + 3u),
    );
  }
  at_hand[WEIGHTS + to] = w;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let width = params[0];
  let rows = params[1];
  let first_row = params[4] + group.x * SIDE;
  let end = params[5];
  if (first_row >= end) { return; }
  let first_word = params[6u + group.y];
  let kv_head = params[2] + group.y;
  let n = local % 16u;
  let p = local / 16u;
  // Rows beyond the last are that one.
  let near = first_word + min(first_row + local / DEPTH, end - 1u) * stride();
  let far = first_word + min(first_row + local / DEPTH + 32u, end - 1u) * stride();
  var norm = 0.0;
  for (var member = 0u; member < GROUP; member++) {
    let column = params[3] + (group.y * GROUP + member) * D;
    var sum = vec4f();
    for (var first = 0u; first < width; first += SIDE) {
      let o = first + local / DEPTH;
      var s0 = vec4f();
      var s1 = vec4f();
      var s2 = vec4f();
      var s3 = vec4f();
      for (var depth = 0u; depth < (D + 3u) / 4u; depth += DEPTH) {
        workgroupBarrier();
        load_quads(local, 0u, depth, near, o * HEADS * D + column, o < width);
        load_quads(local, 32u, depth, far, (o + 32u) * HEADS * D + column, o + 32u < width);
        workgroupBarrier();
        for (var q = 0u; q < DEPTH; q++) {
          let x = q * SIDE + p;
          let k = WEIGHTS + q * SIDE + n;
          let w = transpose(mat4x4f(at_hand[k], at_hand[k + 16u], at_hand[k + 32u], at_hand[k + 48u]));
          s0 = more(s0, at_hand[x], w);
          s1 = more(s1, at_hand[x + 16u], w);
          s2 = more(s2, at_hand[x + 32u], w);
          s3 = more(s3, at_hand[x + 48u], w);
        }
      }
      sum += vec4f(sizes(s0), sizes(s1), sizes(s2), sizes(s3));
    }
    workgroupBarrier();
    at_hand[local] = sum;
    workgroupBarrier();
    if (local < SIDE) {
      var all = 0.0;
      for (var i = 0u; i < 16u; i++) { all += at_hand[local % 16u * 16u + i][local / 16u]; }
      norm += select(sqrt(all), all, NORM == 1u);
    }
  }
  if (local < SIDE && first_row + local < end) {
    norms[kv_head * rows + first_row + local] = norm / f32(GROUP);
  }
}
`,
};

export const ROWS: ShaderFile = {
  name: "backend/rows.wgsl",
  text: `// Moves rows as they are stored, and reads them as float32.
//
//   gather: to[i] = from[list[i]], whole rows of keys and of values, of all heads.  Rows that stay after an eviction.
//   floats: out[i, d] = number d of row list[i], or of row i where there is no list.
//   turned: the same with the pairs of RoPE turned: (a, b) -> (a cos - b sin, b cos + a sin).
//
// One invocation moves one word of both (gather; a head for each group.z), or computes one number (floats, turned), of the
// last two bounded by D.

override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8; see store.wgsl for how rows lie. */
override KIND: u32 = 0u;
/** Numbers of a row that turn, and how far apart those of a pair are: 1 (interleaved), or ROTATED / 2. */
override ROTATED: u32 = 0u;
override PARTNER: u32 = 1u;

/**
 * rows, the word where the head's row 0 would lie (modulo 2^32: a buffer may begin with a later row), start in list (or
 * 0xffffffff: none), first row; gather: of each head rows, the same word, start in list, first word of \`to\`.
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> stored: array<u32>;
@group(0) @binding(2) var<storage, read> list: array<u32>;
@group(0) @binding(3) var<storage, read_write> words: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
/** Cosine and sine of each pair, [turns, ROTATED / 2]. */
@group(0) @binding(5) var<storage, read> circle: array<vec2f>;
/** Values, of gather: \`stored\` and \`words\` are keys there. */
@group(0) @binding(6) var<storage, read> stored_values: array<u32>;
@group(0) @binding(7) var<storage, read_write> value_words: array<u32>;

fn stride() -> u32 {
  if (KIND == 0u) { return D; }
  return select((D + 3u) / 4u + 1u, (D + 1u) / 2u, KIND == 1u);
}

/** Exact, unlike unpack2x16float, which may lose subnormals. */
fn half(bits: u32) -> f32 {
  let exponent = (bits >> 10u) & 31u;
  let mantissa = bits & 1023u;
  let magnitude = select(
    bitcast<f32>(((exponent + 112u) << 23u) | (mantissa << 13u)),
    f32(mantissa) * 5.9604644775390625e-8,
    exponent == 0u,
  );
  return select(magnitude, -magnitude, (bits & 0x8000u) != 0u);
}

fn number(row: u32, d: u32) -> f32 {
  let at = params[1] + row * stride();
  if (KIND == 0u) { return bitcast<f32>(stored[at + d]); }
  if (KIND == 1u) { return half((stored[at + d / 2u] >> (16u * (d & 1u))) & 0xffffu); }
  let whole = extractBits(bitcast<i32>(stored[at + 1u + d / 4u]), 8u * (d & 3u), 8u);
  return f32(whole) * bitcast<f32>(stored[at]);
}

fn thread(group: vec3u, groups: vec3u, local: u32) -> u32 {
  return (group.y * groups.x + group.x) * 64u + local;
}

@compute @workgroup_size(64)
fn gather(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = thread(group, groups, local);
  let each = stride();
  let head = 4u * group.z;
  if (i >= params[head] * each) { return; }
  let from_word = params[head + 1u] + list[params[head + 2u] + i / each] * each + i % each;
  let to_word = params[head + 3u] + i;
  words[to_word] = stored[from_word];
  value_words[to_word] = stored_values[from_word];
}

@compute @workgroup_size(64)
fn floats(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = thread(group, groups, local);
  if (i >= params[0] * D) { return; }
  var row = params[3] + i / D;
  if (params[2] != 0xffffffffu) { row = list[params[2] + i / D]; }
  out[i] = number(row, i % D);
}

@compute @workgroup_size(64)
fn turned(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = thread(group, groups, local);
  if (i >= params[0] * D) { return; }
  let row = params[3] + i / D;
  let d = i % D;
  let x = number(row, d);
  if (d >= ROTATED) {
    out[i] = x;
    return;
  }
  let second = select(d >= PARTNER, (d & 1u) == 1u, PARTNER == 1u);
  let pair = select(d % PARTNER, d / 2u, PARTNER == 1u);
  let turn = circle[list[row] * (ROTATED / 2u) + pair];
  let other = number(row, select(d + PARTNER, d - PARTNER, second));
  out[i] = select(x * turn.x - other * turn.y, x * turn.x + other * turn.y, second);
}
`,
};

export const SOFTMAX: ShaderFile = {
  name: "backend/softmax.wgsl",
  text: `// Turns rows of scores into attention, and measures them.
//
//   p[i] = exp(s[i] - max) / sum over visible i, 0 beyond                            in place
//     with a logit for nothing (HAS_NULLS) it counts in max and sum, and has no p
//   measures[r] = (mass, entropy, factor, ln sum exp s), over the prefix i < N:
//     mass = sum p;  entropy = -sum p ln(p + 1e-10);  factor = mass / sum of the pooled row, 0 where that is 0
//
// The pooled row is the average over \`kernel\` neighbours with zeros beside it, so its sum is
// sum p[i] * (centres that see i) / kernel. One workgroup takes one row; its 256 invocations every 256th number.

// subgroups: enable subgroups;

/** Query heads that share a KV head. */
override GROUP: u32 = 1u;
override HAS_NULLS: bool = false;

/**
 * rows, pitch, count, first query, queries a head, prefix, first query head, first measure, kernel, reach
 * (rows that a query looks back, its own among them; 0: all, 0xffffffff: every row whatever the query), then the rows of each KV head
 * that the run touches.
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(2) var<storage, read_write> measures: array<vec4f>;
/** One of each query head. */
@group(0) @binding(3) var<storage, read> nulls: array<f32>;

const SIZE = 256u;
var<workgroup> parts: array<f32, 256>;
/** Invocations whose numbers are brought together before workgroup memory is used. */
var<private> width: u32 = 1u;

fn sum_of_parts(local: u32) -> f32 {
  for (var half = SIZE / 2u; half > 0u; half /= 2u) {
    if (local < half) { parts[local] += parts[local + half]; }
    workgroupBarrier();
  }
  return parts[0];
}

fn highest_of_parts(local: u32) -> f32 {
  for (var half = SIZE / 2u; half > 0u; half /= 2u) {
    if (local < half) { parts[local] = max(parts[local], parts[local + half]); }
    workgroupBarrier();
  }
  return parts[0];
}

fn sum_of_few() -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < SIZE / width; i++) { sum += parts[i]; }
  return sum;
}

fn highest_of_few() -> f32 {
  var most = parts[0];
  for (var i = 1u; i < SIZE / width; i++) { most = max(most, parts[i]); }
  return most;
}

/** The sum over the workgroup, for all of its invocations. */
fn total(x: f32, local: u32) -> f32 {
  let part = x; // subgroups: let part = subgroupAdd(x);
  workgroupBarrier();
  if (local % width == 0u) { parts[local / width] = part; }
  workgroupBarrier();
  return sum_of_parts(local); // subgroups: return sum_of_few();
}

fn highest(x: f32, local: u32) -> f32 {
  let part = x; // subgroups: let part = subgroupMax(x);
  workgroupBarrier();
  if (local % width == 0u) { parts[local / width] = part; }
  workgroupBarrier();
  return highest_of_parts(local); // subgroups: return highest_of_few();
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
  // subgroups: @builtin(subgroup_size) subgroup_width: u32,
) {
  // subgroups: width = subgroup_width;
  let r = group.y * groups.x + group.x;
  if (r >= params[0]) { return; }
  let pitch = params[1];
  let t = params[3] + r % params[4];
  let head = params[6] + r / params[4];
  let length = params[10u + head / GROUP - params[6] / GROUP];
  var seen = length;
  if (params[9] != 0xffffffffu) { seen = length - params[2] + t + 1u; }
  var start = 0u;
  if (params[9] > 0u && seen > params[9]) { start = seen - params[9]; }
  let at = r * pitch;

  var most = -3.4e38;
  if (HAS_NULLS) { most = nulls[head]; }
  for (var i = start + local; i < seen; i += SIZE) { most = max(most, scratch[at + i]); }
  most = highest(most, local);
  var sum = 0.0;
  for (var i = start + local; i < seen; i += SIZE) { sum += exp(scratch[at + i] - most); }
  sum = total(sum, local);
  if (HAS_NULLS) { sum += exp(nulls[head] - most); }

  let prefix = params[5];
  let sides = params[8] / 2u;
  var mass = 0.0;
  var pooled = 0.0;
  var entropy = 0.0;
  for (var i = local; i < pitch; i += SIZE) {
    var p = 0.0;
    if (i >= start && i < seen) { p = exp(scratch[at + i] - most) / sum; }
    scratch[at + i] = p;
    if (i < prefix) {
      mass += p;
      pooled += p * f32(min(i, sides) + min(prefix - 1u - i, sides) + 1u);
      entropy -= p * log(p + 1e-10);
    }
  }
  mass = total(mass, local);
  pooled = total(pooled, local) / f32(params[8]);
  entropy = total(entropy, local);
  if (local == 0u) {
    let factor = select(mass / pooled, 0.0, pooled == 0.0);
    measures[params[7] + r] = vec4f(mass, entropy, factor, most + log(sum));
  }
}
`,
};

export const STORE: ShaderFile = {
  name: "backend/store.wgsl",
  text: `// Stores rows of float32 as the cache keeps them, bit for bit as core/backend/stored_rows.ts does.
//
//   f32:  the numbers.
//   f16:  each number rounded to float16, ties to even; two in a word, the first in the low half.
//   int8: one word with the float32 scale, then four whole numbers a word, the first in the low byte.
//         scale = largest / 127, rounded up to 17 bits of mantissa; each number / scale, ties to even.
//
// Shapes: source [rows, sourceHeads, D], target: words, head h's row t from params[5 + h] + t * stride on. Keys and values
// lie alike: group.z 0 stores the first of both, 1 the second.
// One workgroup stores one row of one head: group (h, t, z). Its 64 invocations take every 64th number, then word.
//
// \`turned\` takes few rows as a product gives them, queries, keys and values side by side, and turns them on the way as
// dense/rotate.wgsl does: keys (z 0) and values (z 1) are stored, queries (z 2) written to [rows, HEADS, D].
//
// A number that the type can't hold sets faults[0] to the owner's number; the row is then not used.
// Only integer arithmetic decides on a bit: a device's division and rounding need not be exact.

/** Numbers of a row. */
override D: u32 = 64u;
/** 0: f32, 1: f16, 2: int8. */
override KIND: u32 = 0u;

/** Of \`turned\`: query heads and KV heads, the columns of a head that turn, and whether pairs are neighbours. */
override HEADS: u32 = 1u;
override KV_HEADS: u32 = 1u;
override ROTATED: u32 = 0u;
override INTERLEAVED: bool = false;
/** Whether the numbers of a row are at hand, as \`turned\` has them. */
override TURNED: bool = false;

/** rows, sourceHeads, first source head, owner, first row, then the word where each head's row 0 would go (modulo 2^32). */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read_write> stored: array<u32>;
@group(0) @binding(3) var<storage, read_write> faults: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read> second_source: array<f32>;
@group(0) @binding(5) var<storage, read_write> second_stored: array<u32>;
/** (rows, ROTATED + 1): cosines, sines; growth of the queries. */
@group(0) @binding(6) var<storage, read> table: array<f32>;
@group(0) @binding(7) var<storage, read_write> queries: array<f32>;

const SIZE = 64u;
/** Magnitudes from here on round to infinity in float16 (65520), or are none (infinity, NaN). */
const HALF_LIMIT = 0x477ff000u;
const FLOAT_LIMIT = 0x7f800000u;

/** The largest magnitude of the row, as the float's bits: for magnitudes they are in the order of the numbers. */
var<workgroup> largest: atomic<u32>;

fn half_of(bits: u32) -> u32 {
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x38800000u) {
    return sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u);
  }
  // Below 2^-14: whole multiples of 2^-24.
  let exponent = magnitude >> 23u;
  if (exponent < 102u) { return sign; }
  let shift = 126u - exponent;
  let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
  let rest = mantissa & ((1u << shift) - 1u);
  let half = 1u << (shift - 1u);
  let whole = mantissa >> shift;
  return sign | (whole + select(0u, 1u, rest > half || (rest == half && (whole & 1u) == 1u)));
}

/** The float next to bits / 127, rounded up to 17 bits of mantissa; 0 below 2^-119. */
fn scale_of(bits: u32) -> u32 {
  let exponent = bits >> 23u;
  if (exponent < 8u) { return 0u; }
  let shifted = ((bits & 0x7fffffu) | 0x800000u) << 7u;
  let quotient = shifted / 127u;
  let rest = shifted % 127u;
  var mantissa = quotient;
  var power = exponent - 7u;
  if (quotient < 0x1000000u) {
    mantissa += select(0u, 1u, 2u * rest > 127u);
  } else {
    mantissa = quotient >> 1u;
    mantissa += select(0u, 1u, (quotient & 1u) == 1u && (rest > 0u || (mantissa & 1u) == 1u));
    power += 1u;
  }
  return ((power << 23u) + (mantissa - 0x800000u) + 0x7fu) & ~0x7fu;
}

/** x / scale to the nearest whole number, ties to even: what is left of x after whole scales is exact. */
fn byte_of(x: f32, scale: f32) -> u32 {
  if (scale == 0.0) { return 0u; }
  let magnitude = abs(x);
  let whole = min(floor(magnitude / scale), 127.0);
  let rest = magnitude - whole * scale;
  let twice = 2.0 * rest;
  let odd = (u32(whole) & 1u) == 1u;
  let rounded = i32(whole) + select(0, 1, twice > scale || (twice == scale && odd));
  return bitcast<u32>(select(rounded, -rounded, x < 0.0)) & 0xffu;
}

/** Turned numbers that a workgroup stores at once: a row of it. */
const MOST = 256u;
var<workgroup> at_hand: array<f32, MOST>;

/** Column \`d\` of the head that begins at \`head\` of the source, turned by row t of the table. */
fn turn(head: u32, d: u32, t: u32) -> f32 {
  let own = source[head + d];
  if (d >= ROTATED) { return own; }
  let pairs = ROTATED / 2u;
  let pair = select(d % pairs, d / 2u, INTERLEAVED);
  let is_second = select(d >= pairs, d % 2u == 1u, INTERLEAVED);
  let distance = select(pairs, 1u, INTERLEAVED);
  let partner = source[head + select(d + distance, d - distance, is_second)];
  let at = t * (ROTATED + 1u) + pair;
  return own * table[at] + select(-partner, partner, is_second) * table[at + pairs];
}

/** Number \`d\` of the row that begins at \`origin\`. */
fn number(second: bool, origin: u32, d: u32) -> f32 {
  if (TURNED) { return at_hand[d]; }
  if (second) { return second_source[origin + d]; }
  return source[origin + d];
}

fn bits_of(second: bool, origin: u32, d: u32) -> u32 {
  return bitcast<u32>(number(second, origin, d));
}

fn put(second: bool, at: u32, word: u32) {
  if (second) {
    second_stored[at] = word;
  } else {
    stored[at] = word;
  }
}

/** Stores row \`row\` of head \`head\`, whose numbers begin at \`origin\` of the source. */
fn store(row: u32, head: u32, origin: u32, second: bool, local: u32) {
  if (KIND == 0u) {
    let to = params[5u + head] + row * D;
    for (var d = local; d < D; d += SIZE) { put(second, to + d, bits_of(second, origin, d)); }
    return;
  }
  var most = 0u;
  for (var d = local; d < D; d += SIZE) { most = max(most, bits_of(second, origin, d) & 0x7fffffffu); }
  atomicMax(&largest, most);
  if (most >= select(FLOAT_LIMIT, HALF_LIMIT, KIND == 1u)) { atomicMax(&faults[0], params[3]); }
  workgroupBarrier();
  if (KIND == 1u) {
    let words = (D + 1u) / 2u;
    let to = params[5u + head] + row * words;
    for (var w = local; w < words; w += SIZE) {
      var word = half_of(bits_of(second, origin, 2u * w));
      if (2u * w + 1u < D) { word |= half_of(bits_of(second, origin, 2u * w + 1u)) << 16u; }
      put(second, to + w, word);
    }
    return;
  }
  let words = (D + 3u) / 4u;
  let to = params[5u + head] + row * (words + 1u);
  let bits = scale_of(atomicLoad(&largest));
  if (local == 0u) { put(second, to, bits); }
  for (var w = local; w < words; w += SIZE) {
    var word = 0u;
    for (var i = 0u; i < 4u; i++) {
      let d = 4u * w + i;
      if (d < D) { word |= byte_of(number(second, origin, d), bitcast<f32>(bits)) << (8u * i); }
    }
    put(second, to + 1u + w, word);
  }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let row = params[4] + group.y;
  if (row >= params[0]) { return; }
  store(row, group.x, (row * params[1] + params[2] + group.x) * D, group.z == 1u, local);
}

@compute @workgroup_size(64)
fn turned(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let row = group.y;
  let first = row * (HEADS + 2u * KV_HEADS) * D;
  if (row >= params[0] || group.x >= select(KV_HEADS, HEADS, group.z == 2u)) { return; }
  if (group.z == 2u) {
    let growth = table[row * (ROTATED + 1u) + ROTATED];
    let to = (row * HEADS + group.x) * D;
    for (var d = local; d < D; d += SIZE) { queries[to + d] = turn(first + group.x * D, d, row) * growth; }
    return;
  }
  let origin = first + (HEADS + group.z * KV_HEADS + group.x) * D;
  for (var d = local; d < D; d += SIZE) {
    if (group.z == 0u) {
      at_hand[d] = turn(origin, d, row);
    } else {
      at_hand[d] = source[origin + d];
    }
  }
  workgroupBarrier();
  store(row, group.x, origin, group.z == 1u, local);
}
`,
};
