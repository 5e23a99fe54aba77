// out[t, i] = activation(x[t, i]) · x[t, WIDTH + i]: silu(a) = a / (1 + e^−a), or gelu in its tanh form;
// or gpt-oss's limited gate, a / (1 + e^−1.702a) · (b + 1) of a up to 7 and b from −7 to 7.
//
//   params  count      x  (count, 2 · WIDTH)      out  (count, WIDTH)
//
// `by`: out[t, i] = activation(x[t, i]) · factors[t, i] of two values, both (count, WIDTH).
//
// A thread gives one number.

override WIDTH: u32 = 1u;
// 0: silu, 1: gelu, 2: limited.
override ACTIVATION: u32 = 0u;

@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;
@group(0) @binding(3) var<storage, read> factors: array<f32>;

fn activation(a: f32) -> f32 {
  if (ACTIVATION == 1u) {
    // Beyond 15 tanh is 1 in float32, and some devices' overflows.
    return 0.5 * a * (1.0 + tanh(clamp(0.7978845608 * (a + 0.044715 * a * a * a), -15.0, 15.0)));
  }
  return a / (1.0 + exp(min(-a, 80.0)));
}

fn gated(a: f32, b: f32) -> f32 {
  if (ACTIVATION == 2u) {
    let most = min(a, 7.0);
    return most / (1.0 + exp(min(-1.702 * most, 80.0))) * (clamp(b, -7.0, 7.0) + 1.0);
  }
  return activation(a) * b;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * 2u * WIDTH + i;
  out[t * WIDTH + i] = gated(x[at], x[at + WIDTH]);
}

@compute @workgroup_size(64)
fn by(@builtin(global_invocation_id) id: vec3u) {
  let i = id.x;
  let t = id.y;
  if (i >= WIDTH || t >= params[0]) {
    return;
  }
  let at = t * WIDTH + i;
  out[at] = gated(x[at], factors[at]);
}
