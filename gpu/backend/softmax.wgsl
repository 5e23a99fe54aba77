// Turns rows of scores into attention, and measures them.
//
//   p[i] = exp(s[i] - max) / sum over visible i, 0 beyond                            in place
//     with a logit for nothing (HAS_NULLS) it counts in max and sum, and has no p
//   measures[r] = (mass, entropy, factor, ln sum exp s), over the prefix i < N:
//     mass = sum p;  entropy = -sum p ln(p + 1e-10);  factor = mass / sum of the pooled row, 0 where that is 0
//
// The pooled row is the average over `kernel` neighbours with zeros beside it, so its sum is
// sum p[i] * (centres that see i) / kernel. One workgroup takes one row; its 256 invocations every 256th number.

// subgroups: enable subgroups;

/** Query heads that share a KV head. */
override GROUP: u32 = 1u;
override HAS_NULLS: bool = false;

/**
 * rows, pitch, count, first query, queries a head, prefix, first query head, first measure, kernel, reach
 * (rows that a query looks back, its own among them; 0: all, 0xffffffff: every row whatever the query), then the rows of each KV head
 * that the run touches.
 */
@group(0) @binding(0) var<storage, read> params: array<u32>;
@group(0) @binding(1) var<storage, read_write> scratch: array<f32>;
@group(0) @binding(2) var<storage, read_write> measures: array<vec4f>;
/** One of each query head. */
@group(0) @binding(3) var<storage, read> nulls: array<f32>;

const SIZE = 256u;
var<workgroup> parts: array<f32, 256>;
/** Invocations whose numbers are brought together before workgroup memory is used. */
var<private> width: u32 = 1u;

fn sum_of_parts(local: u32) -> f32 {
  for (var half = SIZE / 2u; half > 0u; half /= 2u) {
    if (local < half) { parts[local] += parts[local + half]; }
    workgroupBarrier();
  }
  return parts[0];
}

fn highest_of_parts(local: u32) -> f32 {
  for (var half = SIZE / 2u; half > 0u; half /= 2u) {
    if (local < half) { parts[local] = max(parts[local], parts[local + half]); }
    workgroupBarrier();
  }
  return parts[0];
}

fn sum_of_few() -> f32 {
  var sum = 0.0;
  for (var i = 0u; i < SIZE / width; i++) { sum += parts[i]; }
  return sum;
}

fn highest_of_few() -> f32 {
  var most = parts[0];
  for (var i = 1u; i < SIZE / width; i++) { most = max(most, parts[i]); }
  return most;
}

/** The sum over the workgroup, for all of its invocations. */
fn total(x: f32, local: u32) -> f32 {
  let part = x; // subgroups: let part = subgroupAdd(x);
  workgroupBarrier();
  if (local % width == 0u) { parts[local / width] = part; }
  workgroupBarrier();
  return sum_of_parts(local); // subgroups: return sum_of_few();
}

fn highest(x: f32, local: u32) -> f32 {
  let part = x; // subgroups: let part = subgroupMax(x);
  workgroupBarrier();
  if (local % width == 0u) { parts[local / width] = part; }
  workgroupBarrier();
  return highest_of_parts(local); // subgroups: return highest_of_few();
}

@compute @workgroup_size(256)
fn main(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) local: u32,
  // subgroups: @builtin(subgroup_size) subgroup_width: u32,
) {
  // subgroups: width = subgroup_width;
  let r = group.y * groups.x + group.x;
  if (r >= params[0]) { return; }
  let pitch = params[1];
  let t = params[3] + r % params[4];
  let head = params[6] + r / params[4];
  let length = params[10u + head / GROUP - params[6] / GROUP];
  var seen = length;
  if (params[9] != 0xffffffffu) { seen = length - params[2] + t + 1u; }
  var start = 0u;
  if (params[9] > 0u && seen > params[9]) { start = seen - params[9]; }
  let at = r * pitch;

  var most = -3.4e38;
  if (HAS_NULLS) { most = nulls[head]; }
  for (var i = start + local; i < seen; i += SIZE) { most = max(most, scratch[at + i]); }
  most = highest(most, local);
  var sum = 0.0;
  for (var i = start + local; i < seen; i += SIZE) { sum += exp(scratch[at + i] - most); }
  sum = total(sum, local);
  if (HAS_NULLS) { sum += exp(nulls[head] - most); }

  let prefix = params[5];
  let sides = params[8] / 2u;
  var mass = 0.0;
  var pooled = 0.0;
  var entropy = 0.0;
  for (var i = local; i < pitch; i += SIZE) {
    var p = 0.0;
    if (i >= start && i < seen) { p = exp(scratch[at + i] - most) / sum; }
    scratch[at + i] = p;
    if (i < prefix) {
      mass += p;
      pooled += p * f32(min(i, sides) + min(prefix - 1u - i, sides) + 1u);
      entropy -= p * log(p + 1e-10);
    }
  }
  mass = total(mass, local);
  pooled = total(pooled, local) / f32(params[8]);
  entropy = total(entropy, local);
  if (local == 0u) {
    let factor = select(mass / pooled, 0.0, pooled == 0.0);
    measures[params[7] + r] = vec4f(mass, entropy, factor, most + log(sum));
  }
}
