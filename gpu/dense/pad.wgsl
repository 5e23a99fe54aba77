// Rows made longer by zeros: out[t, i] = x[t, i] for i < WIDTH, else 0.
//
//   params  count      x  (count, WIDTH)      out  (count, PADDED)
//
// A thread gives one number.

override WIDTH: u32 = 1u;
override PADDED: u32 = 1u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= PADDED || t >= params[0]) {
    return;
  }
  var number = 0.0;
  if (i < WIDTH) {
    number = x[t * WIDTH + i];
  }
  out[t * PADDED + i] = number;
}
