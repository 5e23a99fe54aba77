// out = FACTOR · x in the SPAN columns from FIRST on, and x in the others; (count, WIDTH) each.
//
//   params  count
//
// A thread gives one number.

override WIDTH: u32 = 1u;
override FIRST: u32 = 0u;
override SPAN: u32 = 1u;
override FACTOR: f32 = 1.0;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * WIDTH + i;
  out[at] = x[at] * select(1.0, FACTOR, i >= FIRST && i < FIRST + SPAN);
}
