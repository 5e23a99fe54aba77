// Attention of many queries over stored rows, as of a chunk: parameters as of `attend` in attention.wgsl.
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

/** Four numbers of the value at a word, those that invocation n of 16 holds of the 64 from `first` on: see `column`. */
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

/** Writes what a pair came to; `weight` is the sum of all its weights. */
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
