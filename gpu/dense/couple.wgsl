// Columns from FIRST on, SPAN of them, each times the one SPAN behind it; those behind go, and end the row:
//   out[t, i] = x[t, i] for i < FIRST, else x[t, i] · x[t, i + SPAN]
//
//   params  count      x  (count, FIRST + 2 · SPAN)      out  (count, FIRST + SPAN)
//
// A thread gives one number.

override FIRST: u32 = 0u;
override SPAN: u32 = 1u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= FIRST + SPAN || t >= params[0]) {
    return;
  }
  let at = t * (FIRST + 2u * SPAN) + i;
  var number = x[at];
  if (i >= FIRST) {
    number *= x[at + SPAN];
  }
  out[t * (FIRST + SPAN) + i] = number;
}
