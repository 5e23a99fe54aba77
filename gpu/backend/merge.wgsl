// Brings the parts of attention over splits of the rows together.
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
