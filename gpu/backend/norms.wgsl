// How far a value moves the output: norms of its way through the output projection.
//
//   norms[h, i] = mean over the group's query heads g of || v[h, i] . Wo_g ||, l1 or l2
//
// Shapes: values as store.wgsl lays them, wo [width, HEADS * D]: the columns of the dispatch's heads, y = x wo^T, norms [KV heads, rows].
// One workgroup takes 16 rows of one KV head and walks over the outputs, 64 at a time, 16 numbers of the rows at a time;
// invocation (local / 64, local % 64) adds up rows local / 64 + 4j for outputs local % 64, + 64, ...

override D: u32 = 64u;
override KIND: u32 = 0u;
override HEADS: u32 = 1u;
override GROUP: u32 = 1u;
/** 1 or 2. */
override NORM: u32 = 1u;

const SIZE = 256u;
const OUTPUTS = 64u;
const DEPTH = 16u;

/** width, rows, first KV head, then the first word of each KV head of the dispatch */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> wo: array<f32>;
@group(0) @binding(3) var<storage, read_write> norms: array<f32>;

var<workgroup> weight_tile: array<f32, 1024>;
var<workgroup> value_tile: array<f32, 256>;
var<workgroup> partial: array<f32, 1024>;

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

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let width = params[0];
  let rows = params[1];
  let first_row = group.x * 16u;
  if (first_row >= rows) { return; }
  let first_word = params[3u + group.y];
  let kv_head = params[2] + group.y;
  var norm = 0.0;
  for (var member = 0u; member < GROUP; member++) {
    let column = (group.y * GROUP + member) * D;
    var sum = vec4f();
    for (var first = 0u; first < width; first += OUTPUTS) {
      var dots = vec4f();
      for (var depth = 0u; depth < D; depth += DEPTH) {
        workgroupBarrier();
        for (var i = local; i < OUTPUTS * DEPTH; i += SIZE) {
          let o = first + i / DEPTH;
          let d = depth + i % DEPTH;
          var x = 0.0;
          if (o < width && d < D) { x = wo[o * HEADS * D + column + d]; }
          weight_tile[(i % DEPTH) * OUTPUTS + i / DEPTH] = x;
        }
        let row = first_row + local / DEPTH;
        let d = depth + local % DEPTH;
        var v = 0.0;
        if (row < rows && d < D) { v = value(first_word + row * stride(), d); }
        value_tile[local] = v;
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
          let pair = local / OUTPUTS;
          dots += weight_tile[k * OUTPUTS + local % OUTPUTS] * vec4f(
            value_tile[pair * DEPTH + k],
            value_tile[(pair + 4u) * DEPTH + k],
            value_tile[(pair + 8u) * DEPTH + k],
            value_tile[(pair + 12u) * DEPTH + k],
          );
        }
      }
      if (NORM == 1u) { sum += abs(dots); } else { sum += dots * dots; }
    }
    workgroupBarrier();
    for (var j = 0u; j < 4u; j++) { partial[(local / OUTPUTS + 4u * j) * OUTPUTS + local % OUTPUTS] = sum[j]; }
    workgroupBarrier();
    if (local < 16u) {
      var all = 0.0;
      for (var i = 0u; i < OUTPUTS; i++) { all += partial[local * OUTPUTS + i]; }
      norm += select(sqrt(all), all, NORM == 1u);
    }
  }
  if (local < 16u && first_row + local < rows) {
    norms[kv_head * rows + first_row + local] = norm / f32(GROUP);
  }
}
