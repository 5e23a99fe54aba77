// Brings the parts of attention over splits of the rows together.
//
//   M = max m_s;  w_s = l_s exp(m_s - M);  out = sum w_s out_s / sum w_s;  stats = (M, sum w_s)
//
// Shapes: parts [splits, rows, D], part_stats [splits, rows]; rows = count * heads. One invocation gives one number.

override D: u32 = 64u;

/** rows, splits */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> parts: array<f32>;
@group(0) @binding(2) var<storage, read> part_stats: array<vec2f>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> stats: array<vec2f>;

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
) {
  let i = (group.y * groups.x + group.x) * 64u + local;
  let rows = params[0];
  if (i >= rows * D) { return; }
  let row = i / D;
  var most = -3.4e38;
  for (var s = 0u; s < params[1]; s++) { most = max(most, part_stats[s * rows + row].x); }
  var weights = 0.0;
  var sum = 0.0;
  for (var s = 0u; s < params[1]; s++) {
    let part = part_stats[s * rows + row];
    if (part.y == 0.0) { continue; }
    let weight = part.y * exp(part.x - most);
    weights += weight;
    sum += weight * parts[(s * rows + row) * D + i % D];
  }
  out[i] = sum / weights;
  if (i % D == 0u) { stats[row] = vec2f(most, weights); }
}
