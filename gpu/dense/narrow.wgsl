// Rows of float32 as float16 and a factor each. Devices with `f16` only.
//
//   out[t, k] = x[t, k] / scales[t],  scales[t] = max_k |x[t, k]|
//
// So no activation is too large for float16, and no sum of four products with weights below 16000.
//
//
//   x       (count, INPUTS)      out     (count, INPUTS)      scales  (count)
//
// A workgroup takes a row.

enable f16;

// A multiple of 4.
override INPUTS: u32 = 4u;

const LANES = 64u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4h>;
@group(0) @binding(3) var<storage, read_write> scales: array<f32>;

var<workgroup> largest: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let t = group.x;
  if (t >= params[0]) {
    return;
  }
  let first = t * (INPUTS / 4u);
  var most = 0.0;
  for (var k = lane; k < INPUTS / 4u; k += LANES) {
    let four = abs(x[first + k]);
    most = max(most, max(max(four.x, four.y), max(four.z, four.w)));
  }
  largest[lane] = most;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) {
      largest[lane] = max(largest[lane], largest[lane + step]);
    }
  }
  workgroupBarrier();
  let scale = select(largest[0], 1.0, largest[0] == 0.0);
  for (var k = lane; k < INPUTS / 4u; k += LANES) {
    out[first + k] = vec4h(x[first + k] / scale);
  }
  if (lane == 0u) {
    scales[t] = scale;
  }
}
