// How far a value moves the output: norms of its way through the output projection.
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

/** Brings quad `local % DEPTH` behind `depth` of a row and of an output. */
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
