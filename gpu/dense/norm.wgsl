// RMS norm of runs of WIDTH columns: out = x / √(mean x² + EPSILON) · gains.
//
// A row has RUNS of them; those from FIRST on, NORMED of them, are normed, the others copied. The norm of whole rows is
// one run.
//
//   params  count      x  (count, RUNS · WIDTH)      gains  (WIDTH)      out  (count, RUNS · WIDTH)
//
// A workgroup takes a run.

// subgroups: enable subgroups;

override WIDTH: u32 = 1u;
override RUNS: u32 = 1u;
override FIRST: u32 = 0u;
override NORMED: u32 = 1u;
override EPSILON: f32 = 1e-5;
// A power of 2.
override LANES: u32 = 64u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> gains: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> parts: array<f32, LANES>;

// The sum of all threads' `part`, for all of them.
fn sum_of(part: f32, lane: u32) -> f32 {
  parts[lane] = part;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      parts[lane] += parts[lane + step];
    }
  }
  workgroupBarrier();
  return parts[0];
}

// The same by subgroups, whose threads are neighbours in all implementations that are known.
// subgroups: fn sum_of_subgroups(part: f32, lane: u32, within: u32, size: u32) -> f32 {
// subgroups:   let sum = subgroupAdd(part);
// subgroups:   if (within == 0u) {
// subgroups:     parts[lane / size] = sum;
// subgroups:   }
// subgroups:   workgroupBarrier();
// subgroups:   var all = parts[0];
// subgroups:   for (var i = 1u; i < (LANES + size - 1u) / size; i++) {
// subgroups:     all += parts[i];
// subgroups:   }
// subgroups:   return all;
// subgroups: }

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) lane: u32,
// subgroups:   @builtin(subgroup_invocation_id) within: u32,
// subgroups:   @builtin(subgroup_size) size: u32,
) {
  let run = group.x;
  let t = group.y;
  if (run >= RUNS || t >= params[0]) {
    return;
  }
  let first = (t * RUNS + run) * WIDTH;
  if (run < FIRST || run >= FIRST + NORMED) {
    for (var i = lane; i < WIDTH; i += LANES) {
      out[first + i] = x[first + i];
    }
    return;
  }
  var part = 0.0;
  for (var i = lane; i < WIDTH; i += LANES) {
    part += x[first + i] * x[first + i];
  }
  let sum = sum_of(part, lane); // subgroups: let sum = sum_of_subgroups(part, lane, within, size);
  let factor = 1.0 / sqrt(sum / f32(WIDTH) + EPSILON);
  for (var i = lane; i < WIDTH; i += LANES) {
    out[first + i] = x[first + i] * factor * gains[i];
  }
}
