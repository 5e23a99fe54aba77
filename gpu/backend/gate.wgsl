// Scores of a linear gate: scores[t, g] = weights[g] . x[t] / sqrt(mean x[t]^2 + epsilon) + bias[g]
//
// Shapes: hidden [count, width], weights [heads, width], bias [heads], scores [count, heads].
// One workgroup gives one score, group (g, t); its 64 invocations take every 64th number.

// subgroups: enable subgroups;

/** count, width, heads, epsilon (a float's bits), first token */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read> hidden: array<f32>;
@group(0) @binding(2) var<storage, read> weights: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> scores: array<f32>;

const SIZE = 64u;
var<workgroup> parts: array<vec2f, 64>;
/** Invocations whose numbers are brought together before workgroup memory is used. */
var<private> width: u32 = 1u;

fn sum_of_parts(local: u32) -> vec2f {
  for (var half = SIZE / 2u; half > 0u; half /= 2u) {
    if (local < half) { parts[local] += parts[local + half]; }
    workgroupBarrier();
  }
  return parts[0];
}

fn sum_of_few() -> vec2f {
  var sum = vec2f();
  for (var i = 0u; i < SIZE / width; i++) { sum += parts[i]; }
  return sum;
}

@compute @workgroup_size(64)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(local_invocation_index) local: u32,
  // subgroups: @builtin(subgroup_size) subgroup_width: u32,
) {
  // subgroups: width = min(SIZE, subgroup_width);
  let t = params[4] + group.y;
  let inner = params[1];
  if (t >= params[0]) { return; }
  var sums = vec2f();
  for (var i = local; i < inner; i += SIZE) {
    let x = hidden[t * inner + i];
    sums += vec2f(x * x, x * weights[group.x * inner + i]);
  }
  let part = sums; // subgroups: let part = subgroupAdd(sums);
  if (local % width == 0u) { parts[local / width] = part; }
  workgroupBarrier();
  let all = sum_of_parts(local); // subgroups: let all = sum_of_few();
  if (local == 0u) {
    let scale = 1.0 / sqrt(all.x / f32(inner) + bitcast<f32>(params[3]));
    scores[t * params[2] + group.x] = all.y * scale + bias[group.x];
  }
}
