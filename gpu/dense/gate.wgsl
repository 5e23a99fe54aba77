// out[t, i] = activation(x[t, i]) · x[t, WIDTH + i]: silu(a) = a / (1 + e^−a), or gelu in its tanh form.
//
//   params  count      x  (count, 2 · WIDTH)      out  (count, WIDTH)
//
// A thread gives one number.

override WIDTH: u32 = 1u;
override GELU: bool = false;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

fn activation(a: f32) -> f32 {
  if (GELU) {
    // Beyond 15 tanh is 1 in float32, and some devices' overflows.
    return 0.5 * a * (1.0 + tanh(clamp(0.7978845608 * (a + 0.044715 * a * a * a), -15.0, 15.0)));
  }
  return a / (1.0 + exp(min(-a, 80.0)));
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * 2u * WIDTH + i;
  out[t * WIDTH + i] = activation(x[at]) * x[at + WIDTH];
}
