// Attention over stored rows, and its scores alone.
//
//   attend: out[t, head] = sum over rows i of softmax(q[t, head] . k[i] / sqrt(D) + bias[i])[i] * v[i]
//   scores: scratch[r, i] = q . k[i] / sqrt(D) + bias[i] for a run of heads and queries
//
// Query t of `count` sees the last `reach` rows (0: all) up to length - count + t of its head, or every row (UNMASKED);
// heads may differ in length. The first rows of a head may have a bias.
// Shapes: queries [count, HEADS, D]; keys and values as store.wgsl lays them.
//
// One workgroup takes TILE (query, query head) pairs of one KV head, so that heads of a group share what is loaded, and
// runs over rows in steps of 64. In a step: 1. the scores of its pairs, 16 numbers of the rows at a time, through
// workgroup memory; 2. their softmax so far (largest m, sum l); 3. what the rows' values add, each invocation holding up
// to 16 numbers of the output. Workgroups of a head's other rows (`splits`) are brought together by merge.wgsl.

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
/** `reach` where every query sees every row. */
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

/** What is added to the score of row i of the head at `table`. */
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

/** Rows `row ... row + ROWS - 1`, numbers `depth ... depth + DEPTH - 1` of them, those beyond `end` 0. */
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
