// Attention of few queries over stored rows, as of a token: parameters as of `attend` in attention.wgsl.
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

/** Quad i % DEPTH behind `depth` of row i / DEPTH; 0 beyond the end. */
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
